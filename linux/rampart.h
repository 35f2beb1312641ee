/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * What programs say to /dev/rampart. docs/linux-driver.md explains it.
 *
 * Rules for all requests: reserved fields, and fields that only the driver writes, are 0 on the way in, else EINVAL. An
 * errno of the hypervisor comes back as it is. A request that the hypervisor's build does not have is EOPNOTSUPP.
 */
#ifndef RAMPART_H
#define RAMPART_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* Grows when a request changes its meaning; RAMPART_INFO tells it. */
#define RAMPART_ABI		1
/* Pages that one request is for, at most. */
#define RAMPART_MOST_PAGES	512
#define RAMPART_CENSUS_FIGURES	20

struct rampart_info {
	__u32 abi;		/* RAMPART_ABI of the driver */
	__u32 vm;		/* handle of this file's VM, 0 for none */
	__u64 version;		/* HYP_CAPS: x2 */
	__u64 capabilities;	/* HYP_CAPS: x3 */
	__u64 lent;		/* pages of this file that are lent */
	__u64 shared;		/* that are shared with the hypervisor */
	__u64 given;		/* that its VM has */
	__u64 kept;		/* pages of closed files that the hypervisor still uses */
};

/* For RAMPART_LEND, RAMPART_TAKE_BACK, RAMPART_SHARE, RAMPART_UNSHARE. */
struct rampart_pages {
	__u32 nr;		/* in: 1 to RAMPART_MOST_PAGES. out: how many it was done for, on an error too */
	__u32 reserved;
};

#define RAMPART_VM_DEBUGGABLE	(1 << 0)

struct rampart_vm {
	__u32 flags;		/* RAMPART_VM_* */
	__u32 ipa_bits;		/* 32 to 39 */
	__u32 handle;		/* out */
	__u32 reserved;
};

struct rampart_donation {
	__u64 gfn;		/* first frame */
	__u32 nr;		/* as rampart_pages.nr */
	__u32 reserved;
};

struct rampart_table {
	__u64 address;		/* where the copy was: entries of other tables name it */
	__u64 entries[512];
};

struct rampart_snapshot {
	__u64 buffer;		/* address of the room for rampart_table: root pages first and in order */
	__u64 length;		/* in: bytes of room. out: bytes that were written; with ENOSPC, that are needed */
	__u32 target;		/* 0: the host's table, else the handle of a VM */
	__u32 roots;		/* out: root pages */
	__u32 tables;		/* out: other tables */
	__u32 reserved;
	__u64 geometry;		/* out: docs/snapshot.md */
	__u64 start;		/* out: physical address of the first page that the snapshot took, the first root page */
	__u64 end;		/* out: end of the last one */
};

struct rampart_census {
	__u64 findings;		/* 0: all is well */
	__u64 figure[RAMPART_CENSUS_FIGURES];	/* figure N of HYP_AUDIT is figure[N - 1] */
};

#define RAMPART_MAGIC		0xB7
#define RAMPART_INFO		_IOR(RAMPART_MAGIC, 0x00, struct rampart_info)
#define RAMPART_LEND		_IOWR(RAMPART_MAGIC, 0x01, struct rampart_pages)
#define RAMPART_TAKE_BACK	_IOWR(RAMPART_MAGIC, 0x02, struct rampart_pages)
#define RAMPART_SHARE		_IOWR(RAMPART_MAGIC, 0x03, struct rampart_pages)
#define RAMPART_UNSHARE		_IOWR(RAMPART_MAGIC, 0x04, struct rampart_pages)
#define RAMPART_VM_CREATE	_IOWR(RAMPART_MAGIC, 0x05, struct rampart_vm)
#define RAMPART_VM_DONATE	_IOWR(RAMPART_MAGIC, 0x06, struct rampart_donation)
#define RAMPART_VM_DESTROY	_IO(RAMPART_MAGIC, 0x07)
#define RAMPART_SNAPSHOT	_IOWR(RAMPART_MAGIC, 0x08, struct rampart_snapshot)
#define RAMPART_CENSUS		_IOR(RAMPART_MAGIC, 0x09, struct rampart_census)

#endif
