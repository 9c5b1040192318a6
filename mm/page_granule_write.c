// SPDX-License-Identifier: GPL-2.0-only
/*
 * Page granule: writes to files where a granule does not fit.
 *
 * A filesystem allocates, or reserves, what it needs to write back a whole folio.
 * Where there is no space for that, the folio is split, since a single page may
 * still fit.
 */

#include <linux/fs.h>
#include <linux/hash.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/pagemap.h>
#include <linux/quotaops.h>
#include <linux/statfs.h>

#include "internal.h"
#include "page_granule.h"

/*
 * Free space of which nobody takes the last blocks within a jiffy, and within
 * LASTING_JIFFIES, in bytes
 */
#define PLENTY_OF_SPACE	(64ULL << 20)
#define LASTING_SPACE	(4ULL << 30)
#define LASTING_JIFFIES	(HZ / 10)

/* Who faults on a folio at the same time has it referenced for a moment. */
#define SPLIT_TRIES	5

/* A filesystem that has plenty of space, as this CPU has seen. A hint only. */
struct spacious_fs {
	dev_t dev;
	unsigned long until;		/* in jiffies */
};

static DEFINE_PER_CPU(struct spacious_fs, spacious_fs);

/* Two who split folios of a file would have references that the other waits for. */
#define SPLIT_MUTEX_BITS	6

static struct mutex split_mutexes[1 << SPLIT_MUTEX_BITS];

/* Has the filesystem of @dentry less than @need bytes left? */
static bool fs_is_full(struct dentry *dentry, u64 need)
{
	struct spacious_fs *seen = raw_cpu_ptr(&spacious_fs);
	struct super_block *sb = dentry->d_sb;
	struct kstatfs fs = {};
	u64 space;

	if (READ_ONCE(seen->dev) == sb->s_dev && !time_after(jiffies, READ_ONCE(seen->until)))
		return false;
	/* Not vfs_statfs(): nobody asked for what security modules may refuse. */
	if (sb->s_op->statfs(dentry, &fs))
		return true;
	/* ext4 counts blocks as free that nobody but root gets. */
	space = fs.f_bavail * fs.f_bsize;
	if (space >= max(need, PLENTY_OF_SPACE)) {
		WRITE_ONCE(seen->dev, 0);
		WRITE_ONCE(seen->until,
			   jiffies + (space >= LASTING_SPACE ? LASTING_JIFFIES : 0));
		WRITE_ONCE(seen->dev, sb->s_dev);
	}
	return space < need;
}

#ifdef CONFIG_QUOTA
/* Has a quota that @inode is charged to less than @need bytes left? */
static bool quota_is_full(struct inode *inode, u64 need)
{
	struct super_block *sb = inode->i_sb;
	struct qc_dqblk quota;
	kprojid_t project;
	struct kqid qid;
	int type;

	if (ns_capable_noaudit(&init_user_ns, CAP_SYS_RESOURCE))
		return false;
	for (type = 0; type < MAXQUOTAS; type++) {
		if (!sb_has_quota_limits_enabled(sb, type))
			continue;
		switch (type) {
		case USRQUOTA:
			qid = make_kqid_uid(inode->i_uid);
			break;
		case GRPQUOTA:
			qid = make_kqid_gid(inode->i_gid);
			break;
		default:
			if (!sb->dq_op->get_projid || sb->dq_op->get_projid(inode, &project))
				continue;
			qid = make_kqid_projid(project);
		}
		if (!dquot_get_dqblk(sb, qid, &quota) && quota.d_spc_hardlimit &&
		    quota.d_space + need > quota.d_spc_hardlimit)
			return true;
	}
	return false;
}
#else
static bool quota_is_full(struct inode *inode, u64 need)
{
	return false;
}
#endif

/**
 * granule_lacks_space - Is there hardly any space left that a file may need?
 * @file: A file.
 * @need: What there has to be, in bytes.
 *
 * Some filesystems that run out of space within a folio keep the blocks that they
 * have got for it, and then have none for a single page, either. Those without a
 * block device do not, or ask a server. XFS does not tell how near its quotas are.
 *
 * Context: May sleep.
 * Return: true if @need bytes are more than there is, and the file may have holes.
 */
bool granule_lacks_space(struct file *file, u64 need)
{
	struct inode *inode = file_inode(file);
	struct super_block *sb = inode->i_sb;
	struct kstat stat;
	u64 blocks;
	bool full;

	if (!sb->s_bdev)
		return false;
	full = fs_is_full(file->f_path.dentry, need);
	if (!full && !sb_any_quota_loaded(sb))
		return false;
	if (vfs_getattr_nosec(&file->f_path, &stat, STATX_BLOCKS | STATX_SIZE,
			      AT_STATX_DONT_SYNC))
		return true;
	/*
	 * A file that has no holes has got its blocks, be they written or not. One that
	 * has more than its contents and their index take may have them behind its end.
	 */
	blocks = (u64)stat.blocks << SECTOR_SHIFT;
	if (blocks >= stat.size &&
	    blocks - stat.size <= (stat.size >> 8) + PAGE_GRANULE_SIZE)
		return false;
	return full || quota_is_full(inode, need);
}

/*
 * Split the folio of vmf->page, first into granules, so that others stay whole.
 * Returns 0 if the page is in a folio of the least order now, or no longer in the
 * file.
 */
static int split_to_write(struct vm_fault *vmf)
{
	struct address_space *mapping = vmf->vma->vm_file->f_mapping;
	const unsigned int min = mapping_min_folio_order(mapping);
	const loff_t pos = folio_pos(page_folio(vmf->page));
	const loff_t last = pos + folio_size(page_folio(vmf->page)) - 1;
	int tries, error = -EINTR;
	unsigned int order;

	for (tries = 0; tries < SPLIT_TRIES && !fatal_signal_pending(current); tries++) {
		if (tries)
			schedule_timeout_killable(1);
		/* Filesystems do not split what they have not written. */
		error = filemap_fdatawrite_range(mapping, pos, last);
		if (error == -EIO || error == -EROFS)
			break;
		filemap_fdatawait_range_keep_errors(mapping, pos, last);
		lock_page(vmf->page);
		error = 0;
		while (!error && page_folio(vmf->page)->mapping == mapping &&
		       folio_order(page_folio(vmf->page)) > min) {
			order = folio_order(page_folio(vmf->page)) > PAGE_GRANULE_ORDER ?
				max(PAGE_GRANULE_ORDER, min) : min;
			error = split_huge_page_to_order(vmf->page, order);
		}
		unlock_page(vmf->page);
		if (error != -EAGAIN && error != -EBUSY)
			break;
	}
	return error;
}

/**
 * granule_page_mkwrite - vm_ops->page_mkwrite() for a granule.
 * @vmf: A fault for a write to shared memory of a file, on an address in a
 *	 granule. vmf->page is referenced, and its folio is not locked.
 *
 * vmf->page keeps its reference, and is in another folio if this has split it.
 *
 * Context: The mmap lock or the VMA lock is held. May sleep, and write to a
 * disk.
 * Return: what page_mkwrite() returns. With VM_FAULT_NOPAGE or VM_FAULT_SIGBUS,
 * vmf->page may be NULL: this has waited for somebody else to split a folio, and
 * has no reference any more.
 */
vm_fault_t granule_page_mkwrite(struct vm_fault *vmf)
{
	struct file *file = vmf->vma->vm_file;
	struct address_space *mapping = file->f_mapping;
	const struct vm_operations_struct *ops = vmf->vma->vm_ops;
	struct folio *folio = page_folio(vmf->page);
	vm_fault_t ret = VM_FAULT_SIGBUS;
	struct mutex *mutex;
	bool lacks_space;
	u64 need;
	int error;

	if (folio_order(folio) <= mapping_min_folio_order(mapping))
		return ops->page_mkwrite(vmf);
	/*
	 * All CPUs may write to a folio now. A split unmaps what others have locked in
	 * memory, which then is done only if there is no other way.
	 */
	need = folio_size(folio);
	if (!folio_test_mlocked(folio))
		need *= num_online_cpus();
	lacks_space = granule_lacks_space(file, need);
	if (!lacks_space)
		ret = ops->page_mkwrite(vmf);
	if (likely(!(ret & VM_FAULT_SIGBUS)))
		return ret;
	if (IS_IMMUTABLE(mapping->host) || sb_rdonly(mapping->host->i_sb))
		return ret;

	mutex = &split_mutexes[hash_ptr(mapping, SPLIT_MUTEX_BITS)];
	if (!mutex_trylock(mutex)) {
		put_page(vmf->page);
		vmf->page = NULL;
		if (mutex_lock_killable(mutex))
			return VM_FAULT_SIGBUS;
		mutex_unlock(mutex);
		return VM_FAULT_NOPAGE;
	}
	error = split_to_write(vmf);
	mutex_unlock(mutex);
	return lacks_space || !error ? ops->page_mkwrite(vmf) : ret;
}

static int __init granule_write_init(void)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(split_mutexes); i++)
		mutex_init(&split_mutexes[i]);
	return 0;
}
subsys_initcall(granule_write_init);
