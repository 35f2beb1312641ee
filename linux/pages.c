// SPDX-License-Identifier: GPL-2.0
/*
 * Pages that the hypervisor has, lent or shared.
 *
 * A page is entered before the call that gives it away, so that nothing can fail between a call that succeeded and the
 * entry that brings the page back.
 */
#include <linux/gfp.h>
#include <linux/mm.h>
#include <linux/sched/signal.h>

#include "hyp.h"

/* A zeroed page with its entry; the caller has yet to give it away. Its cgroup pays for it. */
struct page *rampart_new_page(struct rampart_file *file, enum rampart_use use)
{
	struct page *page = alloc_page(GFP_KERNEL_ACCOUNT | __GFP_ZERO);
	int err;

	if (!page)
		return ERR_PTR(-ENOMEM);
	err = xa_insert(&file->pages, page_to_pfn(page), xa_mk_value(use), GFP_KERNEL);
	if (err) {
		__free_page(page);
		return ERR_PTR(err);
	}
	file->count[use]++;
	return page;
}

/* The page is the host's: again, or still. */
void rampart_free_page(struct rampart_file *file, enum rampart_use use, unsigned long pfn)
{
	xa_erase(&file->pages, pfn);
	file->count[use]--;
	__free_page(pfn_to_page(pfn));
}

static int give_one(enum rampart_use use, unsigned long pfn)
{
	struct arm_smccc_res res;

	if (use == RAMPART_USE_SHARED)
		return hyp_call(&res, HOST_SHARE_HYP, pfn);
	return hyp_call(&res, HOST_DONATE_HYP, pfn, 1UL);
}

static int take_one(enum rampart_use use, unsigned long pfn)
{
	struct arm_smccc_res res;

	if (use == RAMPART_USE_SHARED)
		return hyp_call(&res, HOST_UNSHARE_HYP, pfn);
	return hyp_call(&res, HYP_DONATE_HOST, pfn, 1UL);
}

/* Pages that were given stay given when a later one cannot be: *done counts them. */
int rampart_give(struct rampart_file *file, enum rampart_use use, u32 nr, u32 *done)
{
	for (*done = 0; *done < nr; ++*done) {
		struct page *page;
		int err;

		if (signal_pending(current))
			return -EINTR;
		page = rampart_new_page(file, use);
		if (IS_ERR(page))
			return PTR_ERR(page);
		err = give_one(use, page_to_pfn(page));
		if (err) {
			rampart_free_page(file, use, page_to_pfn(page));
			return err;
		}
		cond_resched();
	}
	return 0;
}

/*
 * Passes over pages that the hypervisor uses at the moment; a page that comes back can free another of use, so it goes
 * round until nothing comes back any more. The last refusal is the answer where fewer than nr came.
 */
int rampart_take(struct rampart_file *file, enum rampart_use use, u32 nr, u32 *done)
{
	unsigned long pfn;
	void *entry;
	u32 before;
	int err = -ENOENT;

	*done = 0;
	do {
		before = *done;
		xa_for_each(&file->pages, pfn, entry) {
			int verdict;

			if (*done == nr)
				return 0;
			if (xa_to_value(entry) != use)
				continue;
			verdict = take_one(use, pfn);
			if (verdict) {
				err = verdict;
				continue;
			}
			rampart_free_page(file, use, pfn);
			++*done;
			cond_resched();
		}
	} while (*done > before && file->count[use]);
	return *done == nr ? 0 : err;
}
