/* SPDX-License-Identifier: GPL-2.0 */
/* Calls to the hypervisor (docs/abi.md), and what a file has given it. */
#ifndef RAMPART_HYP_H
#define RAMPART_HYP_H

#include <linux/arm-smccc.h>
#include <linux/errno.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/types.h>
#include <linux/xarray.h>

#include "rampart.h"

#define HYP_CAPS		0xC6000100
#define HOST_SHARE_HYP		0xC6000101
#define HOST_UNSHARE_HYP	0xC6000102
#define HOST_DONATE_HYP		0xC6000103
#define HYP_DONATE_HOST		0xC6000104
#define VM_CREATE		0xC6000105
#define VM_TOPUP		0xC6000107
#define VM_TEARDOWN_START	0xC600010A
#define VM_TEARDOWN_FINISH	0xC600010B
#define GUEST_DONATE		0xC600010C
#define RECLAIM_DYING		0xC600010E
#define S2_SNAPSHOT_QUERY	0xC600011A
#define S2_SNAPSHOT		0xC600011B
#define HYP_AUDIT		0xC6000170

/* Major number of the interface that this driver speaks. */
#define HYP_MAJOR		0

/* hyp_call(&res, id, arguments...): 0 or a negative errno; outputs are res.a2 and res.a3. */
#define hyp_call(res, ...)						\
({									\
	arm_smccc_1_1_hvc(__VA_ARGS__, res);				\
	hyp_verdict(res);						\
})

static inline int hyp_verdict(const struct arm_smccc_res *res)
{
	if (res->a0)
		return -EOPNOTSUPP;
	/* No errno of docs/abi.md is unknown to Linux; what is none would read as a pointer. */
	if ((long)res->a1 > 0 || (long)res->a1 < -MAX_ERRNO)
		return -EIO;
	return (int)res->a1;
}

/* What the hypervisor has a page for: the value of the page's entry in rampart_file.pages. */
enum rampart_use {
	RAMPART_USE_LENT,
	RAMPART_USE_SHARED,
	RAMPART_USE_VM,
	RAMPART_USES,
};

/*
 * An open file, or a closed one while the hypervisor uses a page of it. Every page that is not the host's alone is in
 * pages, by frame number, from before the call that gives it away to after the one that brings it back: so a page is
 * freed exactly if it is the host's. Under rampart_lock.
 */
struct rampart_file {
	struct list_head list;
	struct xarray pages;
	unsigned long count[RAMPART_USES];
	u32 handle;
	u32 ipa_bits;
};

extern struct mutex rampart_lock;

/* pages.c */
struct page *rampart_new_page(struct rampart_file *file, enum rampart_use use);
void rampart_free_page(struct rampart_file *file, enum rampart_use use, unsigned long pfn);
int rampart_give(struct rampart_file *file, enum rampart_use use, u32 nr, u32 *done);
int rampart_take(struct rampart_file *file, enum rampart_use use, u32 nr, u32 *done);

/* vm.c */
int rampart_vm_create(struct rampart_file *file, struct rampart_vm *vm);
int rampart_vm_donate(struct rampart_file *file, u64 gfn, u32 nr, u32 *done);
int rampart_vm_destroy(struct rampart_file *file);

/* snapshot.c */
int rampart_snapshot(struct rampart_snapshot *snapshot);

#endif
