# Dictionaries and lists of small objects, half of which are freed again.
import gc
import hashlib


def go():
    d = {i: (i, str(i), [i, i + 1]) for i in range(60000)}
    items = [{'a': i, 'b': [i] * 4, 'c': 's%d' % i} for i in range(40000)]
    gc.collect()
    for i in range(0, 60000, 2):
        del d[i]
    gc.collect()
    items.sort(key=lambda x: -(x['a'] * 7919 % 100003))
    h = hashlib.sha256()
    for x in items[:8000]:
        h.update(repr(x).encode())
    for k in sorted(d)[:8000]:
        h.update(repr(d[k]).encode())
    print(len(d), len(items), h.hexdigest())


go()
gc.collect()
