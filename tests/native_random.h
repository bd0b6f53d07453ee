// Numbers for the checks of what is in C, the same in every run.
#pragma once
#include <stdint.h>

static uint64_t state = 1;
static uint32_t draw(void) {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return (uint32_t)(state >> 32);
}
static float normal(void) {  // nearly
  double sum = 0;
  for (int n = 0; n < 12; n++) sum += draw() / 4294967296.0;
  return (float)(sum - 6);
}
