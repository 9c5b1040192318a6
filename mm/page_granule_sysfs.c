// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: the switch of the administrator.
 */

#include <linux/init.h>
#include <linux/kobject.h>
#include <linux/mm.h>
#include <linux/sizes.h>
#include <linux/sysfs.h>

#include "internal.h"
#include "page_granule.h"

static ssize_t enabled_show(struct kobject *kobj, struct kobj_attribute *attr,
			    char *buf)
{
	return sysfs_emit(buf, "%d\n", READ_ONCE(page_granule_enabled));
}

static ssize_t enabled_store(struct kobject *kobj, struct kobj_attribute *attr,
			     const char *buf, size_t count)
{
	unsigned int value;
	int error;

	error = kstrtouint(buf, 10, &value);
	if (error)
		return error;
	if (value > 1)
		return -EINVAL;

	WRITE_ONCE(page_granule_enabled, value);
	return count;
}

static struct kobj_attribute enabled_attr = __ATTR_RW(enabled);

static ssize_t sizes_kb_show(struct kobject *kobj, struct kobj_attribute *attr,
			     char *buf)
{
	return sysfs_emit(buf, "%lu %lu\n", PAGE_SIZE / SZ_1K,
			  PAGE_GRANULE_SIZE / SZ_1K);
}

static struct kobj_attribute sizes_kb_attr = __ATTR_RO(sizes_kb);

static struct attribute *page_granule_attrs[] = {
	&enabled_attr.attr,
	&sizes_kb_attr.attr,
	NULL,
};

static const struct attribute_group page_granule_attr_group = {
	.name = "page_granule",
	.attrs = page_granule_attrs,
};

static int __init page_granule_init_sysfs(void)
{
	return sysfs_create_group(mm_kobj, &page_granule_attr_group);
}
subsys_initcall(page_granule_init_sysfs);
