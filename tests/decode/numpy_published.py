"""Published samplers that remember, take back, draw or speculate: slowly, in NumPy, for one row, from their procedures.

Nothing here is shared with the engine. Each returns tokens of the answer, the call that committed each (the last one,
where a token may be taken back), the number of calls, and the rows that these computed.
"""

import numpy as np


def softmax(logits):
    """In float64, as KLASS, WINO and Fast-dLLM compute it. LLaDA's own code rounds to float32, or less."""
    p = np.exp(logits - np.max(logits, axis=-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def without(logits, token):
    logits = np.array(logits, np.float64)
    logits[..., token] = -np.inf
    return logits


def best_first(score, among):
    """Positions of `among` in falling order of score, the first of equals first."""
    return sorted(np.flatnonzero(among), key=lambda i: (-score[i], i))


def blocks(prompt, new, block, mask):
    canvas = np.concatenate([prompt, np.full(new, mask)])
    return canvas, np.zeros(len(canvas), int), range(len(prompt), len(canvas), block)


def klass(run, prompt, new, block, mask, tau, kl, history):
    """KLASS as published: law and distances of the whole canvas outlive blocks; each block counts its own steps."""
    canvas, when, starts = blocks(prompt, new, block, mask)
    before, moves, calls = None, np.full((history, len(canvas)), np.inf), 0
    for start in starts:
        inside = (np.arange(len(canvas)) >= start) & (np.arange(len(canvas)) < start + block)
        step = 0
        while (todo := (canvas == mask) & inside).any():
            p = softmax(without(run(canvas)[0], mask))
            calls += 1
            moved = np.inf if before is None else (p * (np.log(p + 1e-12) - np.log(before + 1e-12))).sum(-1)
            moves, before = np.concatenate([moves[1:], np.broadcast_to(moved, (1, len(canvas)))]), p
            ready = todo & (p.max(-1) > tau)
            ready &= (moves < kl).all(0) if step >= history - 1 else False
            if not ready.any():
                ready = np.isin(np.arange(len(canvas)), best_first(p.max(-1), todo)[:1])
            canvas[ready], when[ready] = p.argmax(-1)[ready], calls
            step += 1
    return canvas[len(prompt) :], when[len(prompt) :], calls, calls * len(canvas)


def wino(run, prompt, new, block, mask, tau, tau_remask):
    """WINO as published: one more row for every position of the block, its shadow, judges what stands there."""
    canvas, when, starts = blocks(prompt, new, block, mask)
    calls, place = 0, np.arange(len(canvas))
    for start in starts:
        inside, last = (place >= start) & (place < start + block), 30
        while (todo := (canvas == mask) & inside).any():
            logits, shadow = (without(x, mask) for x in run(canvas))
            calls += 1
            p = softmax(logits)
            top = p.max(-1)
            most = min(max(int(np.float32(todo.sum()) * np.float32(0.7)), 5), 20)
            commit = [i for i in best_first(top, todo) if top[i] > tau][:most] or best_first(top, todo)[:1]
            shifted = shadow - shadow.max(-1, keepdims=True)
            law = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
            held = np.where(canvas == mask, 0.0, law[place, np.where(canvas == mask, 0, canvas)])
            committed = inside & (canvas != mask)
            back = []
            if len(commit) > 1:
                back = [i for i in best_first(-held, committed) if np.exp(held[i]) < tau_remask]
                back = back[: last - 1] if len(back) >= last else back
            canvas[commit], when[commit] = p.argmax(-1)[commit], calls
            canvas[back] = mask
            last = len(commit)
    return canvas[len(prompt) :], when[len(prompt) :], calls, calls * (len(canvas) + block)


def quota(run, prompt, new, block, mask, per_call):
    canvas, when, starts = blocks(prompt, new, block, mask)
    calls, place = 0, np.arange(len(canvas))
    for start in starts:
        while (todo := (canvas == mask) & (place >= start) & (place < start + block)).any():
            p, calls = softmax(without(run(canvas)[0], mask)), calls + 1
            commit = best_first(p.max(-1), todo)[:per_call]
            canvas[commit], when[commit] = p.argmax(-1)[commit], calls
    return canvas[len(prompt) :], when[len(prompt) :], calls, calls * len(canvas)


def prophet(run, prompt, new, block, mask, bars, width):
    """Prophet over one position a call: the answer's mean gap of logits, and a threshold by the share of steps made."""
    canvas, when, starts = blocks(prompt, new, block, mask)
    calls, place = 0, np.arange(len(canvas))
    for start in starts:
        while (todo := (canvas == mask) & (place >= start) & (place < start + block)).any():
            logits, calls = without(run(canvas)[0], mask), calls + 1
            p, two = softmax(logits), np.sort(logits, axis=-1)
            made = calls / new
            threshold = bars[0] if made < 0.33 else bars[1] if made < 0.67 else bars[2]
            commit = best_first(p.max(-1), todo)[:1]
            if (two[-width:, -1] - two[-width:, -2]).mean() >= threshold:
                commit = np.flatnonzero(canvas == mask)
            canvas[commit], when[commit] = p.argmax(-1)[commit], calls
    return canvas[len(prompt) :], when[len(prompt) :], calls, calls * len(canvas)


def threshold_at(run, prompt, new, block, mask, tau, temperature, noise):
    """Fast-dLLM's threshold on drawn tokens: argmax(logits / T + noise), judged by their probability at T = 1."""
    canvas, when, starts = blocks(prompt, new, block, mask)
    calls, place = 0, np.arange(len(canvas))
    for start in starts:
        while (todo := (canvas == mask) & (place >= start) & (place < start + block)).any():
            logits, calls = without(run(canvas)[0], mask), calls + 1
            token = (logits / temperature + noise).argmax(-1)
            own = softmax(logits)[place, token]
            commit = [i for i in best_first(own, todo) if own[i] >= tau] or best_first(own, todo)[:1]
            canvas[commit], when[commit] = token[commit], calls
    return canvas[len(prompt) :], when[len(prompt) :], calls, calls * len(canvas)


def freedave_prefix(model, prompt, new, block, mask, tau, drafts):
    """FreeDave over the threshold rule with Fast-dLLM's prefix cache.

    A block's opening call reads the whole canvas and keeps what stands before the block; every later call reads
    `drafts` canvases from the block's start on. The first draft is certain; the others are followed while they come
    true, inside the block. The rows of a later call are counted to the next quarter of the canvas.
    """
    canvas, when, starts = blocks(prompt, new, block, mask)
    size, calls, rows = len(canvas), 0, 0

    def after(x, logits, start):
        todo = (x == mask) & (np.arange(size) >= start) & (np.arange(size) < start + block)
        if not todo.any():
            return x
        p = softmax(without(logits, mask))
        commit = [i for i in best_first(p.max(-1), todo) if p.max(-1)[i] >= tau] or best_first(p.max(-1), todo)[:1]
        x = x.copy()
        x[commit] = p.argmax(-1)[commit]
        return x

    def committed(new, old):
        when[(new != old)] = calls

    for start in starts:
        left = lambda x, start=start: (x[start : start + block] == mask).any()
        reply, store = model.run(canvas, np.arange(size))
        calls, rows = calls + 1, rows + size
        while True:
            first = after(canvas, reply, start)
            committed(first, canvas)
            canvas = first
            if not left(canvas):
                break
            guesses = [canvas]
            while len(guesses) < drafts:
                guesses.append(after(guesses[-1], reply, start))
            suffix, replies = np.arange(start, size), []
            for guess in guesses:
                some, _ = model.run(guess[suffix], suffix, store, suffix)
                whole = np.zeros((size, some.shape[1]))
                whole[suffix] = some
                replies.append(whole)
            width = next(w for w in (-(-size * k // 4) for k in (1, 2, 3, 4)) if w >= max(size - start, block))
            calls, rows = calls + 1, rows + drafts * width
            reply = replies[0]
            for guess, known in zip(guesses[1:], replies[1:], strict=True):
                true = after(canvas, reply, start)
                if not left(true) or not np.array_equal(true, guess):
                    break
                committed(true, canvas)
                canvas, reply = true, known
    return canvas[len(prompt) :], when[len(prompt) :], calls, rows
