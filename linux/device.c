// SPDX-License-Identifier: GPL-2.0
/*
 * /dev/rampart: what a privileged program may ask of the hypervisor below this kernel.
 *
 * rampart_lock guards every file's pages, the list of files and the state. Nothing is copied from or to a program while
 * it is held.
 */
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/of.h>
#include <linux/reboot.h>
#include <linux/slab.h>
#include <linux/suspend.h>
#include <linux/uaccess.h>

#include "hyp.h"

DEFINE_MUTEX(rampart_lock);
static LIST_HEAD(open_files);
/* Files whose process is gone and whose pages the hypervisor did not give back yet. Each holds the module. */
static LIST_HEAD(closed_files);
/* The error that whoever gives pages away gets: hibernation copies all memory, and the next kernel does not know. */
static int closed_for_pages;

/* Brings back all that can be brought back; true if nothing is left. */
static bool empty(struct rampart_file *file)
{
	u32 done;

	if (file->handle) {
		int err = rampart_vm_destroy(file);

		if (err)
			pr_warn("rampart: VM %#x does not end: error %d\n", file->handle, err);
	}
	rampart_take(file, RAMPART_USE_SHARED, U32_MAX, &done);
	rampart_take(file, RAMPART_USE_LENT, U32_MAX, &done);
	return xa_empty(&file->pages);
}

static void retry_closed_files(void)
{
	struct rampart_file *file, *next;

	list_for_each_entry_safe(file, next, &closed_files, list) {
		if (!empty(file))
			continue;
		list_del(&file->list);
		kfree(file);
		module_put(THIS_MODULE);
	}
}

static int rampart_open(struct inode *inode, struct file *filp)
{
	struct rampart_file *file = kzalloc(sizeof(*file), GFP_KERNEL);

	if (!file)
		return -ENOMEM;
	xa_init(&file->pages);
	mutex_lock(&rampart_lock);
	list_add(&file->list, &open_files);
	mutex_unlock(&rampart_lock);
	filp->private_data = file;
	return 0;
}

static int rampart_release(struct inode *inode, struct file *filp)
{
	struct rampart_file *file = filp->private_data;

	mutex_lock(&rampart_lock);
	list_del(&file->list);
	if (empty(file)) {
		kfree(file);
	} else {
		__module_get(THIS_MODULE);
		list_add(&file->list, &closed_files);
	}
	retry_closed_files();
	mutex_unlock(&rampart_lock);
	return 0;
}

/* ---- Requests ------------------------------------------------------------------------------------------------- */

static long info(struct rampart_file *file, void __user *arg)
{
	struct rampart_info info = { .abi = RAMPART_ABI };
	struct rampart_file *closed;
	struct arm_smccc_res res;
	unsigned int use;
	int err;

	err = hyp_call(&res, HYP_CAPS);
	if (err)
		return err;
	info.version = res.a2;
	info.capabilities = res.a3;
	mutex_lock(&rampart_lock);
	info.vm = file->handle;
	info.lent = file->count[RAMPART_USE_LENT];
	info.shared = file->count[RAMPART_USE_SHARED];
	info.given = file->count[RAMPART_USE_VM];
	list_for_each_entry(closed, &closed_files, list) {
		for (use = 0; use < RAMPART_USES; use++)
			info.kept += closed->count[use];
	}
	mutex_unlock(&rampart_lock);
	return copy_to_user(arg, &info, sizeof(info)) ? -EFAULT : 0;
}

/* The lock, for a request of so many pages. */
static int lock_for(u32 nr)
{
	if (!nr)
		return -EINVAL;
	if (nr > RAMPART_MOST_PAGES)
		return -E2BIG;
	return mutex_lock_interruptible(&rampart_lock);
}

static long pages(struct rampart_file *file, unsigned int cmd, void __user *arg)
{
	struct rampart_pages request;
	u32 done = 0;
	int err;

	if (copy_from_user(&request, arg, sizeof(request)))
		return -EFAULT;
	if (request.reserved)
		return -EINVAL;
	err = lock_for(request.nr);
	if (err)
		return err;
	switch (cmd) {
	case RAMPART_LEND:
		err = closed_for_pages ?: rampart_give(file, RAMPART_USE_LENT, request.nr, &done);
		break;
	case RAMPART_SHARE:
		err = closed_for_pages ?: rampart_give(file, RAMPART_USE_SHARED, request.nr, &done);
		break;
	case RAMPART_TAKE_BACK:
		err = rampart_take(file, RAMPART_USE_LENT, request.nr, &done);
		break;
	case RAMPART_UNSHARE:
		err = rampart_take(file, RAMPART_USE_SHARED, request.nr, &done);
		break;
	}
	mutex_unlock(&rampart_lock);
	request.nr = done;
	return copy_to_user(arg, &request, sizeof(request)) ? -EFAULT : err;
}

static long vm_create(struct rampart_file *file, void __user *arg)
{
	struct rampart_vm vm;
	int err;

	if (copy_from_user(&vm, arg, sizeof(vm)))
		return -EFAULT;
	if (vm.flags & ~RAMPART_VM_DEBUGGABLE || vm.handle || vm.reserved)
		return -EINVAL;
	err = mutex_lock_interruptible(&rampart_lock);
	if (err)
		return err;
	err = closed_for_pages ?: rampart_vm_create(file, &vm);
	mutex_unlock(&rampart_lock);
	if (err)
		return err;
	/* The VM goes with the file, told or not. */
	return copy_to_user(arg, &vm, sizeof(vm)) ? -EFAULT : 0;
}

static long vm_donate(struct rampart_file *file, void __user *arg)
{
	struct rampart_donation request;
	u32 done = 0;
	int err;

	if (copy_from_user(&request, arg, sizeof(request)))
		return -EFAULT;
	if (request.reserved || request.gfn > U64_MAX - RAMPART_MOST_PAGES)
		return -EINVAL;
	err = lock_for(request.nr);
	if (err)
		return err;
	err = closed_for_pages ?: rampart_vm_donate(file, request.gfn, request.nr, &done);
	mutex_unlock(&rampart_lock);
	request.nr = done;
	return copy_to_user(arg, &request, sizeof(request)) ? -EFAULT : err;
}

static long vm_destroy(struct rampart_file *file)
{
	int err = mutex_lock_interruptible(&rampart_lock);

	if (err)
		return err;
	err = rampart_vm_destroy(file);
	mutex_unlock(&rampart_lock);
	return err;
}

static long snapshot(void __user *arg)
{
	struct rampart_snapshot request;
	int err;

	if (copy_from_user(&request, arg, sizeof(request)))
		return -EFAULT;
	if (request.roots || request.tables || request.reserved || request.geometry || request.start || request.end)
		return -EINVAL;
	/* What is the hypervisor's during the call must be nothing that is being saved or handed over. */
	err = mutex_lock_interruptible(&rampart_lock);
	if (err)
		return err;
	err = closed_for_pages;
	mutex_unlock(&rampart_lock);
	if (err)
		return err;
	err = rampart_snapshot(&request);
	if (err && err != -ENOSPC)
		return err;
	return copy_to_user(arg, &request, sizeof(request)) ? -EFAULT : err;
}

static long census(void __user *arg)
{
	struct rampart_census census = { };
	struct arm_smccc_res res;
	unsigned long i;
	int err;

	err = hyp_call(&res, HYP_AUDIT, 0UL, 0UL);
	if (err)
		return err;
	census.findings = res.a2;
	for (i = 0; i < RAMPART_CENSUS_FIGURES; i++) {
		err = hyp_call(&res, HYP_AUDIT, i + 1, 0UL);
		if (err)
			return err;
		census.figure[i] = res.a2;
	}
	return copy_to_user(arg, &census, sizeof(census)) ? -EFAULT : 0;
}

static long rampart_ioctl(struct file *filp, unsigned int cmd, unsigned long arg)
{
	struct rampart_file *file = filp->private_data;
	void __user *user = (void __user *)arg;

	switch (cmd) {
	case RAMPART_INFO:
		return info(file, user);
	case RAMPART_LEND:
	case RAMPART_TAKE_BACK:
	case RAMPART_SHARE:
	case RAMPART_UNSHARE:
		return pages(file, cmd, user);
	case RAMPART_VM_CREATE:
		return vm_create(file, user);
	case RAMPART_VM_DONATE:
		return vm_donate(file, user);
	case RAMPART_VM_DESTROY:
		return arg ? -EINVAL : vm_destroy(file);
	case RAMPART_SNAPSHOT:
		return snapshot(user);
	case RAMPART_CENSUS:
		return census(user);
	default:
		return -ENOTTY;
	}
}

static const struct file_operations rampart_fops = {
	.owner = THIS_MODULE,
	.open = rampart_open,
	.release = rampart_release,
	.unlocked_ioctl = rampart_ioctl,
};

static struct miscdevice rampart_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "rampart",
	.fops = &rampart_fops,
	.mode = 0600,
};

/* ---- What the whole machine does ------------------------------------------------------------------------------ */

/* Hibernation reads every page; one that the hypervisor has would abort. */
static int on_power(struct notifier_block *block, unsigned long event, void *unused)
{
	int err = 0;

	mutex_lock(&rampart_lock);
	switch (event) {
	case PM_HIBERNATION_PREPARE:
	case PM_RESTORE_PREPARE: {
		struct rampart_file *file;

		list_for_each_entry(file, &open_files, list)
			err = xa_empty(&file->pages) ? err : -EBUSY;
		if (!list_empty(&closed_files))
			err = -EBUSY;
		closed_for_pages = err ? 0 : -EBUSY;
		break;
	}
	case PM_POST_HIBERNATION:
	case PM_POST_RESTORE:
		closed_for_pages = 0;
		break;
	}
	mutex_unlock(&rampart_lock);
	return notifier_from_errno(err);
}

/* A kernel that kexec starts does not know what this one gave away. */
static int on_reboot(struct notifier_block *block, unsigned long event, void *unused)
{
	struct rampart_file *file;

	mutex_lock(&rampart_lock);
	closed_for_pages = -ESHUTDOWN;
	list_for_each_entry(file, &open_files, list)
		empty(file);
	retry_closed_files();
	mutex_unlock(&rampart_lock);
	return NOTIFY_DONE;
}

static struct notifier_block power_block = { .notifier_call = on_power };
static struct notifier_block reboot_block = { .notifier_call = on_reboot };

/* Only Rampart makes this node; an HVC where nothing is at EL2 is undefined. */
static bool below_us(void)
{
	struct device_node *parent, *node;
	bool found = false;

	parent = of_find_node_by_path("/reserved-memory");
	for_each_child_of_node(parent, node) {
		if (of_node_name_eq(node, "rampart"))
			found = true;
	}
	of_node_put(parent);
	return found;
}

static int __init rampart_init(void)
{
	struct arm_smccc_res res;
	int err;

	if (!below_us() || hyp_call(&res, HYP_CAPS))
		return -ENODEV;
	if (res.a2 >> 16 != HYP_MAJOR) {
		pr_err("rampart: the hypervisor's interface is %lu.%lu, the driver's %d\n", res.a2 >> 16,
		       res.a2 & 0xffff, HYP_MAJOR);
		return -EPROTONOSUPPORT;
	}
	err = register_pm_notifier(&power_block);
	if (err)
		return err;
	err = register_reboot_notifier(&reboot_block);
	if (err)
		goto no_reboot;
	err = misc_register(&rampart_device);
	if (err)
		goto no_device;
	pr_info("rampart: interface %lu.%lu, capabilities %#lx\n", res.a2 >> 16, res.a2 & 0xffff, res.a3);
	return 0;

no_device:
	unregister_reboot_notifier(&reboot_block);
no_reboot:
	unregister_pm_notifier(&power_block);
	return err;
}

/* No file is open, and none is closed with pages left: each of those holds the module. */
static void __exit rampart_exit(void)
{
	misc_deregister(&rampart_device);
	unregister_reboot_notifier(&reboot_block);
	unregister_pm_notifier(&power_block);
}

module_init(rampart_init);
module_exit(rampart_exit);
MODULE_DESCRIPTION("Access to the Rampart hypervisor");
MODULE_AUTHOR("The Rampart contributors");
MODULE_LICENSE("GPL");
