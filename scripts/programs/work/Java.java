/* A map and its garbage, and threads that read it. */
import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.TreeMap;

public class Java {
	static final int N = 40000, THREADS = 40;

	public static void main(String[] args) throws Exception {
		HashMap<String, int[]> m = new HashMap<>();
		for (int i = 0; i < N; i++)
			m.put("k" + i, new int[] { i, i + 1, i * 7 });
		long sum = 0;
		for (int r = 0; r < 2; r++) {
			ArrayList<byte[]> l = new ArrayList<>();
			for (int i = 0; i < 15000; i++) {
				l.add(new byte[200 + i % 300]);
				sum += l.get(i).length;
			}
		}
		Thread[] threads = new Thread[THREADS];
		final long[] out = new long[THREADS];
		for (int i = 0; i < THREADS; i++) {
			final int k = i;
			threads[i] = new Thread(() -> {
				long q = 0;
				for (int j = 0; j < 500; j++)
					q += m.get("k" + j * (k + 1))[2];
				out[k] = q;
			});
			threads[i].start();
		}
		for (Thread t : threads)
			t.join();
		for (long x : out)
			sum += x;
		for (int i = 0; i < N; i += 2)
			m.remove("k" + i);
		System.gc();
		MessageDigest d = MessageDigest.getInstance("SHA-256");
		for (String k : new TreeMap<>(m).keySet())
			d.update(k.getBytes());
		StringBuilder hex = new StringBuilder();
		for (byte b : d.digest())
			hex.append(String.format("%02x", b));
		System.out.println(m.size() + " " + sum + " " + hex);
	}
}
