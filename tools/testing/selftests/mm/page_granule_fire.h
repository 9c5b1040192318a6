/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Fork while other threads write to all pages, which they do not stop for it.
 * For page_granule_cow.c and page_granule_pin.c: a function with the harness in
 * it.
 */
#ifndef __PAGE_GRANULE_FIRE_H__
#define __PAGE_GRANULE_FIRE_H__

#include "page_granule_mem.h"

/* Writers that do not pause for the fork. */
struct fire {
	struct mem *mem;
	bool stop;
};

static void *fire(void *arg)
{
	struct fire *fire = arg;
	unsigned long i;
	char value = 0;

	while (!__atomic_load_n(&fire->stop, __ATOMIC_RELAXED)) {
		value++;
		for (i = 0; i < mem_pages(fire->mem); i++)
			__atomic_store_n(byte_in(fire->mem->area, i), value,
					 __ATOMIC_RELAXED);
	}
	return NULL;
}

/* Any value that the others wrote before the fork is right. */
static void fire_model(struct mem *mem)
{
	unsigned long i;

	for (i = 0; i < mem_pages(mem); i++)
		*byte_in(mem->model, i) = *byte_in(mem->area, i);
}

static void fork_under_fire(struct __test_metadata *_metadata, struct mem *mem)
{
	struct fire shared = { .mem = mem };
	pthread_t threads[2];
	struct peer peer;
	int i;

	for (i = 0; i < 2; i++)
		ASSERT_EQ(pthread_create(&threads[i], NULL, fire, &shared), 0);
	for (i = 0; i < 6; i++) {
		ASSERT_TRUE(peer_fork(&peer, mem));
		if (!peer.pid) {
			EXPECT_EQ(mem_whole(mem), mem->nr);
			fire_model(mem);
			mem_write_pages(mem, i);
			EXPECT_INTACT(mem);
			_exit(0);
		}
		EXPECT_TRUE(peer_end(&peer));
	}
	__atomic_store_n(&shared.stop, true, __ATOMIC_RELAXED);
	for (i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	fire_model(mem);
	EXPECT_INTACT(mem);
}

#endif /* __PAGE_GRANULE_FIRE_H__ */
