#include "tests/lib/faultdisk.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/rng.h"

enum { FILES_MAX = 256, SECTOR = 512 };

struct entry {
    char path[64];
    char old_path[64];      /* it may have this name again after a crash, */
    struct entry *replaced; /* and this one its own */
    struct buf now;
    struct buf synced;
    bool exists;        /* the name is there */
    bool exists_synced; /* and would be after a crash */
};

struct disk_file {
    struct faultdisk *d;
    struct entry *entry;
};

struct faultdisk {
    struct disk disk;
    struct entry *entries[FILES_MAX];
    uint32_t count;
    uint64_t fail_at;
    uint64_t operations;
    uint64_t room; /* bytes of all files at most; 0: enough */
    bool copies;   /* a full disk refuses writes in place too */
};

static struct faultdisk *fault_of(struct disk *d)
{
    return (struct faultdisk *)d;
}

static bool fails(struct faultdisk *d)
{
    d->operations++;
    return d->fail_at != 0 && d->operations >= d->fail_at;
}

static struct entry *find(const struct faultdisk *d, const char *path)
{
    for (uint32_t i = 0; i < d->count; i++) {
        if (strcmp(d->entries[i]->path, path) == 0) {
            return d->entries[i];
        }
    }
    return NULL;
}

static struct entry *make(struct faultdisk *d, const char *path)
{
    struct entry *e = find(d, path);
    if (e == NULL) {
        CHECK(d->count < FILES_MAX);
        e = mem_alloc(sizeof *e);
        snprintf(e->path, sizeof e->path, "%s", path);
        d->entries[d->count++] = e;
    }
    return e;
}

static void set_bytes(struct buf *to, const struct buf *from)
{
    buf_clear(to);
    buf_append(to, from->data, from->size);
}

static void resize(struct buf *b, size_t size)
{
    if (size > b->size) {
        size_t more = size - b->size;
        memset(buf_extend(b, more), 0, more);
    }
    b->size = size;
}

static enum err f_open(struct disk *disk, const char *path, bool create,
                       struct disk_file **out)
{
    struct faultdisk *d = fault_of(disk);
    struct entry *e = find(d, path);
    if (e == NULL || !e->exists) {
        if (!create) {
            return ERR_NOTFOUND;
        }
        if (fails(d)) {
            return ERR_IO;
        }
        e = make(d, path);
        e->exists = true;
        buf_clear(&e->now);
    }
    struct disk_file *f = mem_alloc(sizeof *f);
    *f = (struct disk_file){d, e};
    *out = f;
    return ERR_OK;
}

static void f_close(struct disk_file *f)
{
    mem_free(f);
}

static enum err f_size(struct disk_file *f, uint64_t *out)
{
    *out = f->entry->now.size;
    return ERR_OK;
}

static enum err f_read(struct disk_file *f, uint64_t offset, void *to,
                       size_t size)
{
    const struct buf *b = &f->entry->now;
    if (offset > b->size || size > b->size - offset) {
        return ERR_CORRUPT;
    }
    if (size > 0) {
        memcpy(to, b->data + offset, size);
    }
    return ERR_OK;
}

static uint64_t room_left(struct disk *disk)
{
    struct faultdisk *d = fault_of(disk);
    uint64_t used = 0;
    for (uint32_t i = 0; i < d->count; i++) {
        used += d->entries[i]->exists ? d->entries[i]->now.size : 0;
    }
    return used < d->room ? d->room - used : 0;
}

/* As pwrite() does: of what does not fit, the beginning may be written. */
static bool fits(struct disk_file *f, uint64_t offset, const struct slice *part)
{
    uint64_t end = offset + part->size, size = f->entry->now.size;
    uint64_t left = f->d->room == 0 ? UINT64_MAX : room_left(&f->d->disk);
    if (f->d->copies && left < part->size) {
        size_t some = part->size * 3 / 4;
        if (offset + some <= size) {
            memcpy(f->entry->now.data + offset, part->data, some);
        }
        return false;
    }
    return end <= size || end - size <= left;
}

static enum err f_write(struct disk_file *f, uint64_t offset,
                        const struct slice *parts, uint32_t part_count)
{
    bool failed = fails(f->d);
    struct buf *b = &f->entry->now;
    for (uint32_t i = 0; i < part_count; i++) {
        if (!failed && !fits(f, offset, &parts[i])) {
            return ERR_NOSPACE;
        }
        if (offset + parts[i].size > b->size) {
            resize(b, (size_t)(offset + parts[i].size));
        }
        if (parts[i].size > 0) {
            memcpy(b->data + offset, parts[i].data, parts[i].size);
        }
        offset += parts[i].size;
    }
    return failed ? ERR_IO : ERR_OK;
}

static enum err f_truncate(struct disk_file *f, uint64_t size)
{
    if (fails(f->d)) {
        return ERR_IO;
    }
    resize(&f->entry->now, (size_t)size);
    return ERR_OK;
}

static enum err f_sync(struct disk_file *f)
{
    if (fails(f->d)) {
        return ERR_IO;
    }
    set_bytes(&f->entry->synced, &f->entry->now);
    return ERR_OK;
}

static enum err f_remove(struct disk *disk, const char *path)
{
    struct faultdisk *d = fault_of(disk);
    struct entry *e = find(d, path);
    if (e == NULL || !e->exists) {
        return ERR_NOTFOUND;
    }
    if (fails(d)) {
        return ERR_IO;
    }
    e->exists = false;
    return ERR_OK;
}

static enum err f_rename(struct disk *disk, const char *from, const char *to)
{
    struct faultdisk *d = fault_of(disk);
    struct entry *e = find(d, from);
    if (e == NULL || !e->exists) {
        return ERR_NOTFOUND;
    }
    if (fails(d)) {
        return ERR_IO;
    }
    struct entry *target = find(d, to);
    if (target != NULL) {
        e->replaced = target->exists_synced ? target : NULL;
        target->exists = target->exists_synced = false;
        target->path[0] = 0;
    }
    if (e->old_path[0] == 0) {
        snprintf(e->old_path, sizeof e->old_path, "%s", from);
    }
    snprintf(e->path, sizeof e->path, "%s", to);
    return ERR_OK;
}

static enum err f_mkdir(struct disk *disk, const char *path)
{
    (void)path;
    return fails(fault_of(disk)) ? ERR_IO : ERR_OK;
}

/* The name in the directory ("" is the root), NULL if it is not in it. */
static const char *name_in(const struct entry *e, const char *dir)
{
    size_t size = strlen(dir);
    if (size == 0) {
        return strchr(e->path, '/') == NULL ? e->path : NULL;
    }
    bool within = strncmp(e->path, dir, size) == 0 && e->path[size] == '/';
    return within ? e->path + size + 1 : NULL;
}

static enum err f_sync_dir(struct disk *disk, const char *path)
{
    struct faultdisk *d = fault_of(disk);
    if (fails(d)) {
        return ERR_IO;
    }
    for (uint32_t i = 0; i < d->count; i++) {
        struct entry *e = d->entries[i];
        if (name_in(e, path) != NULL) {
            e->exists_synced = e->exists;
            e->old_path[0] = 0;
            e->replaced = NULL;
        }
    }
    return ERR_OK;
}

static enum err f_list(struct disk *disk, const char *path,
                       void (*each)(void *arg, const char *name), void *arg)
{
    struct faultdisk *d = fault_of(disk);
    for (uint32_t i = 0; i < d->count; i++) {
        struct entry *e = d->entries[i];
        const char *name = name_in(e, path);
        if (e->exists && name != NULL) {
            each(arg, name);
        }
    }
    return ERR_OK;
}

static enum err f_space(struct disk *disk, uint64_t *free)
{
    *free = fault_of(disk)->room == 0 ? UINT64_MAX : room_left(disk);
    return ERR_OK;
}

static const struct disk_ops fault_ops = {
    .open = f_open,
    .close = f_close,
    .size = f_size,
    .read = f_read,
    .write = f_write,
    .truncate = f_truncate,
    .sync = f_sync,
    .rename = f_rename,
    .remove = f_remove,
    .mkdir = f_mkdir,
    .sync_dir = f_sync_dir,
    .space = f_space,
    .list = f_list,
};

struct faultdisk *faultdisk_new(void)
{
    struct faultdisk *d = mem_alloc(sizeof *d);
    d->disk.ops = &fault_ops;
    return d;
}

void faultdisk_free(struct faultdisk *d)
{
    for (uint32_t i = 0; i < d->count; i++) {
        buf_free(&d->entries[i]->now);
        buf_free(&d->entries[i]->synced);
        mem_free(d->entries[i]);
    }
    mem_free(d);
}

struct disk *faultdisk_disk(struct faultdisk *d)
{
    return &d->disk;
}

void faultdisk_fill(struct faultdisk *d, uint64_t slack, bool copies)
{
    d->room = UINT64_MAX;
    d->room = UINT64_MAX - room_left(&d->disk) + slack + 1;
    d->copies = copies;
}

void faultdisk_empty(struct faultdisk *d)
{
    d->room = 0;
    d->copies = false;
}

void faultdisk_fail_at(struct faultdisk *d, uint64_t nth)
{
    d->fail_at = nth;
    d->operations = 0;
}

uint64_t faultdisk_operations(const struct faultdisk *d)
{
    return d->operations;
}

/* Was a rename that no sync_dir followed, or not. */
static void unrename(struct faultdisk *d, struct entry *e, bool back)
{
    struct entry *replaced = e->replaced;
    back = back && e->old_path[0] != 0 && find(d, e->old_path) == NULL;
    if ((back || !e->exists) && replaced != NULL) {
        memcpy(replaced->path, e->path, sizeof replaced->path);
        replaced->exists = replaced->exists_synced = true;
        e->path[0] = 0;
    }
    if (back) {
        memcpy(e->path, e->old_path, sizeof e->path);
    }
    e->old_path[0] = 0;
    e->replaced = NULL;
}

/* Each sector is the old one or the new one; and the size is one of both. */
static void tear(struct entry *e, struct rng *rng)
{
    struct buf result = {0};
    set_bytes(&result, &e->synced);
    uint32_t keep = (uint32_t)rng_below(rng, 1001);
    if (rng_chance(rng, 500)) {
        resize(&result, e->now.size);
    }
    for (size_t at = 0; at < result.size; at += SECTOR) {
        size_t size = result.size - at < SECTOR ? result.size - at : SECTOR;
        if (rng_chance(rng, keep) && at + size <= e->now.size) {
            memcpy(result.data + at, e->now.data + at, size);
        }
    }
    set_bytes(&e->now, &result);
    set_bytes(&e->synced, &result);
    buf_free(&result);
}

void faultdisk_crash(struct faultdisk *d, uint64_t seed)
{
    struct rng rng = {seed};
    for (uint32_t i = 0; i < d->count; i++) {
        struct entry *e = d->entries[i];
        if (e->exists != e->exists_synced) {
            e->exists = rng_chance(&rng, 500);
        }
        e->exists_synced = e->exists;
        unrename(d, e, rng_chance(&rng, 500));
        tear(e, &rng);
    }
    faultdisk_fail_at(d, 0);
}

struct buf *faultdisk_bytes(struct faultdisk *d, const char *path)
{
    struct entry *e = find(d, path);
    return e == NULL || !e->exists ? NULL : &e->now;
}

static int by_path(const void *a, const void *b)
{
    return strcmp((*(struct entry *const *)a)->path,
                  (*(struct entry *const *)b)->path);
}

const char *faultdisk_path(struct faultdisk *d, uint32_t nth)
{
    if (d->count > 0) {
        qsort(d->entries, d->count, sizeof(struct entry *), by_path);
    }
    for (uint32_t i = 0; i < d->count; i++) {
        if (d->entries[i]->exists && nth-- == 0) {
            return d->entries[i]->path;
        }
    }
    return NULL;
}

void faultdisk_copy(struct faultdisk *to, const struct faultdisk *from)
{
    for (uint32_t i = 0; i < to->count; i++) {
        to->entries[i]->exists = to->entries[i]->exists_synced = false;
    }
    for (uint32_t i = 0; i < from->count; i++) {
        const struct entry *e = from->entries[i];
        struct entry *copy = make(to, e->path);
        set_bytes(&copy->now, &e->now);
        set_bytes(&copy->synced, &e->synced);
        copy->exists = e->exists;
        copy->exists_synced = e->exists_synced;
    }
}
