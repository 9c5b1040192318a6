# 200 threads that are there at once, each with little memory: stacks and arenas.
import threading

N = 200
ready = threading.Barrier(N)
out = [0] * N


def work(i):
    x = [bytearray(600 + i) for _ in range(20)]
    out[i] = sum(map(len, x))
    ready.wait()


threads = [threading.Thread(target=work, args=(i,)) for i in range(N)]
for t in threads:
    t.start()
for t in threads:
    t.join()
print(sum(out))
