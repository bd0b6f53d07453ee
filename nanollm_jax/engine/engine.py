"""The one loop: requests sit down in rows, are read piece by piece, written chunk by chunk, and stand up.

No clock, no thread, no socket: what happens is a function of the requests and cancellations in the order in which they
came. Every request is one sentence: this row has these ids; the cache holds the first n of them; read the rest, then write.
A new request is n = 0, a prefix that was read before or a conversation's next turn another n, and a text that outgrows
longrope's original length n = 0 again.

The law of load: in one engine (rows, piece) an answer has the same bits alone and beside any others. Pieces end at
multiples of `piece`, so where they begin never depends on what was cached; sums over slots do not depend on the capacity;
and a row's numbers do not depend on the other rows', nor on what was guessed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator
from typing import Any

import jax

from nanollm_jax.collectives import whole
from nanollm_jax.engine import buckets, drafts, memory, pooling, prefix, slots
from nanollm_jax.engine.drafts import Speculate
from nanollm_jax.engine.masks import allowed_of, anything, steps_of
from nanollm_jax.engine.pieces import next_pieces, piece_again
from nanollm_jax.engine.request import Request
from nanollm_jax.engine.rows import Event, Owner, Pending, Slot, Spent, Ticket, asked_of, common_prefix
from nanollm_jax.loading import Model

EVENTS = 4096  # how many of the last events are remembered


class Engine:
    """B rows of one model, and everything that is waiting for one."""

    def __init__(
        self,
        model: Model,
        rows: int,
        *,
        piece: int | None = None,
        prefix_bytes: int | None = None,
        remember: bool = False,
        speculate: Speculate = None,
        context: int = 1,
        programs: Any = slots,
    ) -> None:
        """rows is B, a multiple of the mesh's dp; piece is P: tokens of a prompt that are read at once, and of a block
        that is kept.

        prefix_bytes bounds what is kept of prompts that were read; None is buckets' choice. remember: rows keep what they read
        and wrote, and what comes next reads only what is new in it; for conversations, whose row is theirs alone. speculate
        is who guesses tokens: a step writes several, and answers have the bits of such blocks. context: positions of the
        longest texts, where they are known (memory.least). programs: slots.py or another.
        """
        self.model, self.config, self.programs = model, model.config, programs
        self.rows, self.dp, self.remember, self.speculate = rows, model.dp, remember, speculate
        self.spare, self.other = drafts.spare(speculate), drafts.other_of(speculate, model)
        self.piece, self.least = buckets.PIECE if piece is None else piece, memory.least(model, context, speculate)
        self.slots = [Slot(row, *divmod(row, rows // self.dp), self.dp, rows // self.dp) for row in range(rows)]
        self.queue: deque[Ticket] = deque()
        self.pending: deque[Pending] = deque()
        self.grown: dict[Ticket, None] = {}  # whose answers did, in the step that is under way
        self.events: deque[Event] = deque(maxlen=EVENTS)
        self.tickets = 0
        self.spent = Spent()
        self.state = self.empty()
        self.anything, self.anything_first = (
            anything(n, self.config, model.mesh) for n in (rows, self.dp * self.together(1))
        )
        self.places = 0 if remember else memory.places(self, prefix_bytes)
        self.forget()

    def empty(self, positions: int = 1) -> slots.State:
        """A state of rows that are nobody's, with a capacity of so many positions at least."""
        return memory.empty_rows(self, buckets.capacity(max(positions, self.least), self.config.max_positions))

    def forget(self) -> None:
        """Keep nothing of what was read before."""
        self.pool: prefix.Pool | None = None
        self.prefixes = [prefix.Prefixes(self.piece, self.places) for _ in range(self.dp)]

    # what comes in

    def submit(self, request: Request) -> Ticket:
        """Take a request in. It waits for a row, first come first served."""
        ticket = Ticket(self.tickets, request, request.answer(self.model), self.spent)
        self.tickets += 1
        self.queue.append(ticket)
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Nobody waits for this answer any more; it stays as far as it came, and its row is free at the next step."""
        if not ticket.ended:
            ticket.cancelled = True

    @property
    def seated(self) -> list[Request]:
        """What those ask for who have a row."""
        return [slot.ticket.request for slot in self.slots if slot.ticket is not None]

    @property
    def idle(self) -> bool:
        """Is there nothing to do?"""
        return not (self.queue or self.pending or any(slot.ticket for slot in self.slots))

    # what happens

    def step(self) -> list[Ticket]:
        """Do the next thing: seat who waits, read, write a chunk, and look at what came back. -> whose answers grew or ended.

        Where somebody waits for pieces of text at most one piece of a prompt is read between two chunks, and what has come
        back is handed out before anything else is waited for, so that who writes waits for one piece and one chunk; else all
        that are seated are read first, a piece a step. One chunk is always on its way while the last one is looked at. Where
        the device has no memory for a step, who wanted it is told (NoRoomError), and where the state went with it all that sit.
        """
        try:
            self.turn()
        except Exception as error:
            if jax.process_count() > 1 or not memory.ran_out(error):  # what one has no memory for, another may have
                raise
            self.grown |= dict.fromkeys(memory.refuse(self))
        grown, self.grown = list(self.grown), {}
        return grown

    def turn(self) -> None:
        """One step that has the memory it needs."""
        for slot in self.slots:
            if slot.ticket is not None and slot.ticket.ended:
                self.free(slot)
        if len(self.pending) > (not (self.remember and self.queue)):  # more is on its way, or a row goes on from it
            self.look_at(len(self.pending) - 1)
            return
        self.seat()
        asked, writes = self.seated, any(slot.left > 0 and slot.drawn > 0 for slot in self.slots)
        # texts that nobody goes on with may come for ever, each in the row that the last one left
        watched = any(one.streamed for one in asked) or (writes and not all(one.answered for one in asked))
        if self.read() and not watched:  # a step a piece, so that who leaves is not read to the end
            return
        # a first token that nobody writes beside waits for no loop to be compiled
        first = watched and bool(self.pending) and not (writes or any(pending.steps for pending in self.pending))
        # what may come next in an answer of a grammar depends on what is on its way
        while self.pending and any(slot.follows and slot.flying for slot in self.slots):
            self.look_at(len(self.pending) - 1)
        wrote = not first and self.write(watched)
        self.look_at(max(wrote, watched * (len(self.pending) - (not self.grown))))

    def look_at(self, most: int) -> None:
        """Look at what has come back, until so much is on its way at most."""
        while len(self.pending) > most:
            self.grown |= dict.fromkeys(self.look(self.pending.popleft()))

    def seat(self) -> None:
        """Give free rows to who came first: to each the first of those whose part of the rows knows most of its prompt."""
        if self.queue and not (self.remember or any(slot.ticket for slot in self.slots)):
            self.state = memory.shrunk(self, list(self.queue)[: self.rows])
        while self.queue and (free := [slot for slot in self.slots if slot.ticket is None]):
            ticket = self.queue.popleft()
            if ticket.cancelled:
                continue
            ids, root = ticket.request.ids, self.root(ticket.request, len(ticket.request.ids))
            known = [len(prefixes.find(root, ids[:-1])) for prefixes in self.prefixes]
            slot = max(free, key=lambda one: known[one.part])
            slot.ticket, slot.drawn = ticket, 0
            self.events.append(Event("admitted", ticket.number, slot.row, len(ids)))
            self.begin(slot, list(ticket.request.text))
            ticket.cached_tokens = slot.at

    def root(self, request: Request, length: int) -> Hashable:
        """The world in which a text is read: another adapter reads it otherwise, and so does longrope a long one."""
        switch = self.config.switch_length
        return (request.root, request.adapter, switch is not None and length > switch)

    def begin(self, slot: Slot, text: list[int]) -> None:
        """Let a row's request read this text, of which the row may hold a beginning."""
        ticket = slot.ticket
        assert ticket is not None
        request, switch = ticket.request, self.config.switch_length
        world = self.root(request, len(text))
        n = self.kept(slot, text) if self.remember and slot.world == world else 0
        left = request.max_new_tokens - slot.drawn
        if switch is not None and len(text) <= switch:
            # the token that outgrows it is drawn, and read again with all the rest
            left = min(left, switch + 1 - len(text))
        slot.text, slot.at, slot.held, slot.reach, slot.world = text, n, text[:n], slot.reach if n else 0, world
        slot.fill(n)
        slot.allowed, slot.flying, slot.block, slot.keeps = slot.drawn + left, 0, None, True
        asked = asked_of(self.config, self.dp, request, ticket.answer.token_ids, left)
        self.state = slots.begin(self.state, asked, slot.named(), slot.one(n), config=self.config)

    def kept(self, slot: Slot, text: list[int]) -> int:
        """How many of a text's first tokens the row holds and can go back to. The last one is read in any case."""
        n, switch = common_prefix(slot.held, text[:-1]), self.config.switch_length
        if switch is not None and (len(text) > switch) != (slot.filled > switch):
            return 0
        both = zip(self.state.cache.layers, self.config.layers, strict=True)
        return 0 if any(kept.forgets(slot.filled, slot.reach, n, layer.window) for kept, layer in both) else n

    def read(self) -> bool:
        """Read the next piece of who came first, or short ones of several; or recall, or make room for it. Was there any?"""
        reading = sorted((slot for slot in self.slots if slot.reading), key=lambda slot: slot.ticket.number)  # type: ignore[union-attr]
        if not reading:
            return False
        most = iter(range(buckets.RECALLED))
        if self.recall(reading[0], most):
            return True
        for slot in reading[1:] if self.together(reading[0].program(self.piece)[0]) > 1 else ():
            self.recall(slot, most)  # it may be short as well, and read at once
        now = next_pieces(reading, self.piece, self.together)
        if memory.make_room(self, now.positions):
            return True
        params, config, (count, row, _, _, adapter, last, tops) = self.model.params, self.config, now.numbers
        how: dict[str, Any] = {"config": config, "fresh": now.fresh, "other": self.other}
        self.state, states, final = self.programs.read(params, self.state, now.tokens, *now.numbers[:5], **how)
        found: slots.Drawn | slots.Scored | pooling.Vectors | None = None
        if now.wanted == "score":
            found = slots.score(params, states, now.targets, count, tops, adapter, config=config)
        elif now.wanted != "draw":
            found = pooling.pooled(params, now, states, final, config=config)
        elif last.any():
            allowed, last = allowed_of(self.anything_first, now.places), last.astype(bool)
            self.state, found = self.programs.first(params, self.state, final, row, last, allowed, config=config)
        if found is not None:
            self.send(found, now.owners(), 0)
        for slot in now.places.values():
            self.advance(slot, slot.piece(self.piece))
        return True

    def together(self, tokens: int) -> int:
        """How many pieces of so many tokens are read at once, of each part of the rows."""
        return buckets.together(max(tokens, buckets.SHORTEST), jax.default_backend(), self.slots[0].places, self.piece)

    def send(self, found: slots.Drawn | slots.Scored | pooling.Vectors, owners: list[Owner], steps: int) -> None:
        """Note what is on its way, if it is anybody's."""
        for owner in owners:
            owner.slot.flying += owner.tokens
        if owners:
            self.pending.append(Pending(found, owners, steps))

    def recall(self, slot: Slot, most: Iterator[int]) -> bool:
        """Put into a row what comes next of its text and was read before, but for its last token. Is there more than `most`?"""
        assert slot.ticket is not None
        root, prefixes = self.root(slot.ticket.request, len(slot.text)), self.prefixes[slot.part]
        while slot.recalls(self.piece):
            block = prefixes.next(root, slot.block, slot.text[slot.at : slot.at + self.piece])
            if block is None:
                break
            if memory.make_room(self, slot.at + self.piece) or next(most, None) is None:
                return True
            at, place = slot.one(slot.at), slot.one(block.place)
            self.state = prefix.restore(self.state, self.pool, slot.named(), at, place, config=self.config)
            if self.other is not None:  # what it keeps of its own is in no store
                piece = piece_again(slot, block.key[1], self.together)
                self.state = slots.draft_reads(self.other, self.state, *piece, fresh=slot.at == 0)
            self.events.append(Event("hit", slot.ticket.number, slot.row, self.piece))
            slot.at += self.piece
            slot.block, slot.held = block, slot.text[: slot.at]
            slot.fill(slot.at)
            slot.ticket.cached_tokens += self.piece
        return False

    def advance(self, slot: Slot, size: int) -> None:
        """Note that a row has read so many tokens more, and keep them where they are a whole piece."""
        assert slot.ticket is not None
        self.events.append(Event("piece", slot.ticket.number, slot.row, size))
        if size == self.piece and slot.shares(self.piece):
            prefix.keep_piece(self, slot)
        slot.at += size
        slot.held = slot.text[: slot.at]
        slot.fill(slot.at)
        slot.ticket.read_tokens += size

    def blocks(self) -> prefix.Pool:
        """The pool; made when something is first kept."""
        if self.pool is None:
            self.pool = prefix.empty_pool(self.state.cache, self.places * self.dp, self.piece)
        return self.pool

    def write(self, watched: bool) -> bool:
        """Send the next chunk of tokens for every row that writes on its way. Was there any?"""
        writing = [slot for slot in self.slots if slot.left > 0]
        if not writing:
            return False
        steps = buckets.STREAMED if watched or self.queue else buckets.CHUNK
        steps = buckets.BETWEEN if any(slot.reading for slot in self.slots) else steps
        steps = buckets.FOLLOWED if any(slot.follows for slot in writing) else steps
        owners = [slot.owner(steps, self.spare) for slot in writing]
        memory.make_room(self, max(owner.slot.filled + owner.positions for owner in owners))
        each, allowed = steps_of(owners, self.rows), allowed_of(self.anything, {slot.row: slot for slot in writing})
        how = {"config": self.config, "speculate": drafts.program_of(self.speculate)}
        self.state, drawn = self.programs.write_tokens(self.model.params, self.state, each, allowed, self.other, **how)
        for owner in owners:
            owner.slot.fill(owner.slot.filled + owner.positions, self.spare)
        self.events.append(Event("chunk", -1, len(writing), steps))
        self.send(drawn, owners, steps)
        return True

    def look(self, pending: Pending) -> list[Ticket]:
        """Take in what came back from the device. -> whose answers grew."""
        grown, found = [], jax.tree.map(whole, pending.found)
        for owner in pending.owners:
            slot, ticket = owner.slot, owner.ticket
            if slot.ticket is not ticket:  # it has ended or was cancelled, and the row may be somebody else's by now
                slot.settle(found, owner, pending.steps > 0)
                continue
            grown.append(ticket)
            self.events += slot.take(found, owner, pending.steps > 0)
            if ticket.ended:
                self.free(slot)
            elif not (slot.flying or slot.reading) and slot.drawn == slot.allowed:
                # it has outgrown longrope's original length
                self.events.append(Event("switched", ticket.number, slot.row, slot.drawn))
                self.begin(slot, [*ticket.request.ids, *ticket.answer.token_ids])
        return grown

    def free(self, slot: Slot) -> None:
        """Nobody's row."""
        assert slot.ticket is not None
        self.events.append(Event("freed", slot.ticket.number, slot.row, slot.drawn))
        slot.ticket = None
