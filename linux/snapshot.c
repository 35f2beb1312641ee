// SPDX-License-Identifier: GPL-2.0
/*
 * A copy of a stage-2 table. Its pages are one block: the root (so that it is aligned), the chain, the descriptor. They
 * are the hypervisor's during the call and the host's at its end, whatever it answers.
 */
#include <linux/bitmap.h>
#include <linux/gfp.h>
#include <linux/log2.h>
#include <linux/mm.h>
#include <linux/uaccess.h>

#include "hyp.h"

#define MAGIC		0x534E3253
#define VERSION		1
#define END		(~0ULL)
#define MOST_ROOTS	16
/* One block of the page allocator. */
#define MOST_BYTES	(PAGE_SIZE << MAX_PAGE_ORDER)
/* A table that grows between query and snapshot is asked for again. */
#define TRIES		4

/* The first and second part of the descriptor page (docs/snapshot.md). */
struct descriptor {
	__le32 magic;
	__le16 version;
	__le16 flags;
	__le64 pgd_pfn;
	__le32 pgd_pages;
	__le32 nr_tables;
	__le64 head_pfn;
	__le64 reserved[4];
	__le64 status;
	__le64 root_pa;
	__le64 geometry;
	__le32 used;
	__le32 needed;
	__le64 unused_head;
	__le32 unused;
};

struct block {
	void *memory;
	size_t bytes;
	u32 roots;
	u32 tables;
};

static struct descriptor *descriptor_of(const struct block *block)
{
	return block->memory + block->bytes - PAGE_SIZE;
}

static int block_take(struct block *block, u32 roots, u32 tables)
{
	unsigned long first;
	struct descriptor *desc;
	u32 i;

	block->bytes = ((size_t)roots + tables + 1) << PAGE_SHIFT;
	if (block->bytes > MOST_BYTES)
		return -E2BIG;
	block->memory = alloc_pages_exact(block->bytes, GFP_KERNEL_ACCOUNT | __GFP_ZERO | __GFP_NOWARN);
	if (!block->memory)
		return -ENOMEM;
	block->roots = roots;
	block->tables = tables;
	first = virt_to_pfn(block->memory);
	for (i = 0; i < tables; i++) {
		__le64 *link = block->memory + (((size_t)roots + i) << PAGE_SHIFT);

		*link = cpu_to_le64(i + 1 < tables ? first + roots + i + 1 : END);
	}
	desc = descriptor_of(block);
	desc->magic = cpu_to_le32(MAGIC);
	desc->version = cpu_to_le16(VERSION);
	desc->pgd_pfn = cpu_to_le64(first);
	desc->pgd_pages = cpu_to_le32(roots);
	desc->nr_tables = cpu_to_le32(tables);
	desc->head_pfn = cpu_to_le64(tables ? first + roots : END);
	return 0;
}

static void block_free(struct block *block)
{
	free_pages_exact(block->memory, block->bytes);
}

/* Takes the snapshot into a block of the right size, which the caller frees. */
static int take(struct block *block, unsigned long target)
{
	struct arm_smccc_res res;
	unsigned int try;
	u32 roots, tables;
	int err;

	err = hyp_call(&res, S2_SNAPSHOT_QUERY, target);
	if (err)
		return err;
	roots = upper_32_bits(res.a3);
	tables = lower_32_bits(res.a3);
	if (!roots || roots > MOST_ROOTS || !is_power_of_2(roots))
		return -EIO;
	for (try = 0; try < TRIES; try++) {
		/* Taking the pages may split blocks. */
		err = block_take(block, roots, tables + tables / 64 + 8);
		if (err)
			return err;
		err = hyp_call(&res, S2_SNAPSHOT, target, virt_to_pfn(descriptor_of(block)), 0UL);
		if (!err)
			return 0;
		block_free(block);
		if (err != -ENOMEM || !res.a2)
			return err;
		tables = lower_32_bits(res.a2);
	}
	return err;
}

/* Marks the pages of the block that hold no table: those that came back as a chain, and the descriptor. */
static int mark_unused(const struct block *block, unsigned long *unused)
{
	const struct descriptor *desc = descriptor_of(block);
	u64 first = virt_to_pfn(block->memory), nth, pfn = le64_to_cpu(desc->unused_head);
	u32 i;

	__set_bit(block->roots + block->tables, unused);
	for (i = 0; i < le32_to_cpu(desc->unused); i++) {
		nth = pfn - first;
		if (nth < block->roots || nth >= (u64)block->roots + block->tables || __test_and_set_bit(nth, unused))
			return -EIO;
		pfn = le64_to_cpu(*(__le64 *)(block->memory + (nth << PAGE_SHIFT)));
	}
	return 0;
}

static int copy_out(const struct block *block, const unsigned long *unused, struct rampart_table __user *to)
{
	unsigned long nth;

	for_each_clear_bit(nth, unused, block->bytes >> PAGE_SHIFT) {
		const void *page = block->memory + (nth << PAGE_SHIFT);

		if (put_user((u64)virt_to_phys(page), &to->address) || copy_to_user(to->entries, page, PAGE_SIZE))
			return -EFAULT;
		to++;
	}
	return 0;
}

int rampart_snapshot(struct rampart_snapshot *snapshot)
{
	DECLARE_BITMAP(unused, MOST_BYTES >> PAGE_SHIFT) = { };
	const struct descriptor *desc;
	struct block block;
	u32 pages;
	int err;

	err = take(&block, snapshot->target);
	if (err)
		return err;
	err = mark_unused(&block, unused);
	if (err)
		goto free;
	desc = descriptor_of(&block);
	pages = block.roots + block.tables + 1 - bitmap_weight(unused, MOST_BYTES >> PAGE_SHIFT);
	snapshot->roots = block.roots;
	snapshot->tables = pages - block.roots;
	snapshot->geometry = le64_to_cpu(desc->geometry);
	snapshot->start = virt_to_phys(block.memory);
	snapshot->end = snapshot->start + block.bytes;
	if (snapshot->length < (u64)pages * sizeof(struct rampart_table))
		err = -ENOSPC;
	else
		err = copy_out(&block, unused, u64_to_user_ptr(snapshot->buffer));
	snapshot->length = (u64)pages * sizeof(struct rampart_table);
free:
	block_free(&block);
	return err;
}
