"""One room per concept. Arrays in, arrays out; every size comes from an array, never from a config."""
