/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A trace: what was accessed, in order, as the plugin writes it and the models read
 * it. A word is the number of a line of 64 bytes, and what was done to it. In the
 * file each word is the difference to the last one of its kind, in seven bits a byte.
 */
#ifndef TLB_TRACE_H
#define TLB_TRACE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

enum { TRACE_DATA, TRACE_FETCH, TRACE_ORDER, TRACE_KINDS = 4 };

/* Orders, instead of lines. */
enum { TRACE_COUNT, TRACE_FLUSH };

#define TRACE_WORD(line, kind)	((uint64_t)(line) << 2 | (kind))
#define TRACE_MAGIC		"TLBTRACE"

struct trace {
	FILE *fp;
	uint64_t last[TRACE_KINDS];
	uint64_t hash;
};

static inline void trace_byte(struct trace *trace, unsigned int byte)
{
	putc_unlocked(byte, trace->fp);
	trace->hash = (trace->hash ^ byte) * 0x100000001b3ULL;
}

static inline bool trace_create(struct trace *trace, const char *path)
{
	*trace = (struct trace){ .fp = fopen(path, "w"), .hash = 0xcbf29ce484222325ULL };
	return trace->fp && fputs(TRACE_MAGIC, trace->fp) >= 0;
}

static inline void trace_put(struct trace *trace, uint64_t word)
{
	const unsigned int kind = word & 3;
	const int64_t diff = (word >> 2) - trace->last[kind];
	uint64_t code = ((uint64_t)diff << 1 ^ (uint64_t)(diff >> 63)) << 2 | kind;

	trace->last[kind] = word >> 2;
	for (; code > 0x7f; code >>= 7)
		trace_byte(trace, 0x80 | (code & 0x7f));
	trace_byte(trace, code);
}

static inline bool trace_close(struct trace *trace, uint64_t *hash)
{
	*hash = trace->hash;
	return !fclose(trace->fp);
}

/* Read the next word; false at the end. */
static inline bool trace_get(struct trace *trace, uint64_t *word)
{
	unsigned int shift = 0, kind;
	uint64_t code = 0, diff;
	int byte;

	do {
		byte = getc_unlocked(trace->fp);
		if (byte == EOF)
			return false;
		code |= (uint64_t)(byte & 0x7f) << shift;
		shift += 7;
	} while (byte & 0x80);
	kind = code & 3;
	code >>= 2;
	diff = code >> 1 ^ -(code & 1);
	trace->last[kind] += diff;
	*word = TRACE_WORD(trace->last[kind], kind);
	return true;
}

#endif /* TLB_TRACE_H */
