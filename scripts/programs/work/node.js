// A map of objects, half of which are deleted, JSON of it, and buffers.
const crypto = require('crypto');

const m = new Map();
for (let i = 0; i < 40000; i++)
	m.set('k' + i, { i, s: 'v' + i * 7919, a: [i, i + 1] });
const o = JSON.parse(JSON.stringify([...m.values()].slice(0, 15000)));
for (let i = 0; i < 40000; i += 2)
	m.delete('k' + i);
const buffers = [];
for (let i = 0; i < 20; i++)
	buffers.push(Buffer.alloc(500000, i));
o.sort((x, y) => (x.s < y.s ? -1 : 1));
const h = crypto.createHash('sha256');
for (const x of o)
	h.update(x.s);
for (const x of buffers)
	h.update(x);
console.log(m.size, o.length, h.digest('hex'));
