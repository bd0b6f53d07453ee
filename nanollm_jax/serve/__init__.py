"""An OpenAI-compatible server: HTTP in front of the engine, which knows nothing of it. Here are no arrays and no mathematics.

What happens to one request, in the order of the files:

    server.py         sockets and signals: listens, lets what runs finish when it is told to stop
    guards.py         before anything is read: whose request it is, from where, how large
    app.py            which function answers which path
    writing.py        the two that write; vectors.py embeddings, ranking.py documents, tokens.py about tokens
    service.py        what all of these share: the model and its names, whose key it is, what is under way
    bodies.py         the JSON that clients send, field by field; fields.py has the tables of what is not honoured
    messages.py       messages and tools in them, as clients send them and as templates take them
    asking.py         bodies to requests of the engine: templates and tokenizers, in threads beside the loop
    forming.py        which form their answers must have: JSON, a grammar, calls of tools
    reading.py        how the answers are to be read: calls of tools, reasoning
    engine_thread.py  the one thread that owns the engine: requests in, pieces of answers out
    turns.py          what it hands the engine between two steps, and what all processes of a server do alike
    followers.py      the other processes of a server: they are handed each turn, and end when one is lost
    meeting.py        how these find each other; wire.py turns as lines of JSON; watchdog.py a step that does not end
    calls.py          what one HTTP request waits for, on its way between the two
    replies.py        answers to the JSON that clients expect; logprobs.py their tokens one by one
    events.py         the same piece by piece: server-sent events
    pages.py          pages for who has no client: the chat at /, and the glass box
    watching.py       the routes of the glass box; watcher.py the thread and the engine that it has for itself
    timeline.py       what the serving engine did lately; looking.py a server of the glass box alone
    refusals.py       whatever is wrong, in the one shape that clients read
    metrics.py        counts and durations, for Prometheus
"""
