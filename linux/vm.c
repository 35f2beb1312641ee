// SPDX-License-Identifier: GPL-2.0
/*
 * The one protected VM that a file may have: memory goes in, and all of it comes back with the VM's end. No vCPU runs.
 *
 * Pages of a VM are freed when the hypervisor says that the VM is gone, and not before.
 */
#include <linux/mm.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>

#include "hyp.h"

#define PROTECTED	(1UL << 0)
#define DEBUGGABLE	(1UL << 2)
#define NO_PAGE		(~0UL)
#define RWX		7UL
/* A root of one page is enough for 39 bits. */
#define MOST_IPA_BITS	39
#define BUDGET		512UL

static void free_pages_of_vm(struct rampart_file *file)
{
	unsigned long pfn;
	void *entry;

	xa_for_each(&file->pages, pfn, entry) {
		if (xa_to_value(entry) == RAMPART_USE_VM)
			rampart_free_page(file, RAMPART_USE_VM, pfn);
	}
}

int rampart_vm_create(struct rampart_file *file, struct rampart_vm *vm)
{
	/* The VM, its root, its reserve. */
	unsigned long pfn[3], flags = PROTECTED;
	struct arm_smccc_res res;
	unsigned int i;
	int err;

	if (file->handle)
		return -EEXIST;
	if (vm->ipa_bits < 32 || vm->ipa_bits > MOST_IPA_BITS)
		return -EINVAL;
	if (vm->flags & RAMPART_VM_DEBUGGABLE)
		flags |= DEBUGGABLE;
	for (i = 0; i < ARRAY_SIZE(pfn); i++) {
		struct page *page = rampart_new_page(file, RAMPART_USE_VM);

		if (IS_ERR(page)) {
			free_pages_of_vm(file);
			return PTR_ERR(page);
		}
		pfn[i] = page_to_pfn(page);
	}
	err = hyp_call(&res, VM_CREATE, flags, (unsigned long)vm->ipa_bits, pfn[0], 1UL, pfn[1], 1UL, pfn[2]);
	if (err) {
		free_pages_of_vm(file);
		return err;
	}
	file->handle = (u32)res.a2;
	file->ipa_bits = vm->ipa_bits;
	vm->handle = file->handle;
	return 0;
}

/* Moves nr pages into the VM's store of table pages, one chain each: a page that is refused stays out of it. */
static int top_up(struct rampart_file *file, unsigned long nr)
{
	while (nr--) {
		struct page *page = rampart_new_page(file, RAMPART_USE_VM);
		struct arm_smccc_res res;
		int err;

		if (IS_ERR(page))
			return PTR_ERR(page);
		*(u64 *)page_address(page) = NO_PAGE;
		err = hyp_call(&res, VM_TOPUP, (unsigned long)file->handle, page_to_pfn(page), 1UL);
		if (err) {
			rampart_free_page(file, RAMPART_USE_VM, page_to_pfn(page));
			return err;
		}
	}
	return 0;
}

static int donate_one(struct rampart_file *file, u64 gfn)
{
	struct page *page = rampart_new_page(file, RAMPART_USE_VM);
	struct arm_smccc_res res;
	unsigned long pfn;
	bool again = true;
	int err;

	if (IS_ERR(page))
		return PTR_ERR(page);
	pfn = page_to_pfn(page);
	for (;;) {
		err = hyp_call(&res, GUEST_DONATE, (unsigned long)file->handle, (unsigned long)gfn, pfn, 0UL, RWX);
		if (err != -ENOMEM || !res.a3 || !again)
			break;
		again = false;
		err = top_up(file, res.a3);
		if (err)
			break;
	}
	if (err)
		rampart_free_page(file, RAMPART_USE_VM, pfn);
	return err;
}

int rampart_vm_donate(struct rampart_file *file, u64 gfn, u32 nr, u32 *done)
{
	*done = 0;
	if (!file->handle)
		return -ENOENT;
	for (; *done < nr; ++*done) {
		int err;

		if (signal_pending(current))
			return -EINTR;
		err = donate_one(file, gfn + *done);
		if (err)
			return err;
		cond_resched();
	}
	return 0;
}

/* Cannot be interrupted: it runs when the process is gone already. */
int rampart_vm_destroy(struct rampart_file *file)
{
	unsigned long handle = file->handle, at = 0, top = 1UL << file->ipa_bits;
	struct arm_smccc_res res;
	int err;

	if (!handle)
		return -ENOENT;
	err = hyp_call(&res, VM_TEARDOWN_START, handle);
	/* EBUSY: an earlier attempt has begun it. */
	if (err && err != -EBUSY)
		return err;
	while (at < top) {
		err = hyp_call(&res, RECLAIM_DYING, handle, at, top);
		if (err)
			return err;
		if (res.a2 <= at)
			return -EIO;
		at = res.a2;
		cond_resched();
	}
	do {
		err = hyp_call(&res, VM_TEARDOWN_FINISH, handle, BUDGET);
		cond_resched();
	} while (err == -EAGAIN);
	if (err)
		return err;
	file->handle = 0;
	free_pages_of_vm(file);
	return 0;
}
