/* A file has what is on the platter (`base`), and what was done since as a list
 * of operations; `live`, what a reader sees, is both together. Directories are
 * the same: the entries that are synced, and the operations since. */
#include "tests/sim/disk.h"

#include <stdio.h>
#include <string.h>

#include "base/check.h"

enum { NAME_SIZE = 128, DIRS_MAX = 8, SECTOR = 512 };

/* A change of a file that no sync has covered. */
struct change {
    struct change *next;
    bool is_truncate;
    uint64_t offset; /* or the new size */
    size_t size;
    uint8_t data[];
};

struct inode {
    struct buf base, live;
    struct change *first, **last;
    bool lost;      /* a sync failed: `live` shows what nobody has written */
    uint32_t refs;  /* names and handles */
    size_t settled; /* synced, and a later sync wrote behind it */
};

struct name {
    struct name *next;
    char text[NAME_SIZE];
    struct inode *inode;
};

/* A change of a directory that no sync_dir has covered: `name` now means
 * `inode` (NULL: nothing), and `gone`, unless empty, means nothing: so a rename
 * is one change, and never half of one. */
struct dir_change {
    struct dir_change *next;
    char name[NAME_SIZE];
    char gone[NAME_SIZE];
    struct inode *inode;
};

struct dir {
    char path[NAME_SIZE];
    bool synced; /* in its parent */
    struct name *base, *live;
    struct dir_change *first, **last;
};

struct sim_disk {
    struct disk disk;
    struct sim_env *env;
    struct dir dirs[DIRS_MAX]; /* [0] is the root */
    uint32_t dir_count;
    uint32_t die_after;
    uint32_t die_after_full; /* from the first want of space on */
    bool fail_sync;
    uint64_t sync_failed_us; /* 0: none has, in this life */
    bool full, copies;       /* copies on write */
    uint64_t room;           /* full: bytes of all files at most */
    uint64_t syncs;
    uint32_t handles;
};

struct disk_file {
    struct sim_disk *disk;
    struct inode *inode;
};

static struct sim_disk *of(struct disk *d)
{
    return (struct sim_disk *)d;
}

/* ---- inodes and names ---- */

static struct inode *inode_ref(struct inode *i)
{
    if (i != NULL) {
        i->refs++;
    }
    return i;
}

static void changes_free(struct inode *i)
{
    while (i->first != NULL) {
        struct change *c = i->first;
        i->first = c->next;
        mem_free(c);
    }
    i->last = &i->first;
}

static void inode_unref(struct inode *i)
{
    if (i != NULL && --i->refs == 0) {
        changes_free(i);
        buf_free(&i->base);
        buf_free(&i->live);
        mem_free(i);
    }
}

static struct name *name_find(struct name *list, const char *text)
{
    while (list != NULL && strcmp(list->text, text) != 0) {
        list = list->next;
    }
    return list;
}

static void name_drop(struct name **list, const char *text)
{
    for (; *list != NULL; list = &(*list)->next) {
        struct name *n = *list;
        if (strcmp(n->text, text) == 0) {
            *list = n->next;
            inode_unref(n->inode);
            mem_free(n);
            return;
        }
    }
}

static void name_set(struct name **list, const char *text, struct inode *inode)
{
    inode_ref(inode);
    name_drop(list, text);
    if (inode == NULL) {
        return;
    }
    struct name *n = mem_alloc(sizeof *n);
    snprintf(n->text, sizeof n->text, "%s", text);
    n->inode = inode;
    n->next = *list;
    *list = n;
}

static void names_free(struct name **list)
{
    while (*list != NULL) {
        name_drop(list, (*list)->text);
    }
}

static void names_copy(struct name **to, struct name *from)
{
    names_free(to);
    for (; from != NULL; from = from->next) {
        name_set(to, from->text, from->inode);
    }
}

/* ---- directories ---- */

static struct dir *dir_find(struct sim_disk *d, const char *path, size_t size)
{
    for (uint32_t i = 0; i < d->dir_count; i++) {
        if (strlen(d->dirs[i].path) == size &&
            memcmp(d->dirs[i].path, path, size) == 0) {
            return &d->dirs[i];
        }
    }
    return NULL;
}

/* The directory of `path`, and the name in it. */
static struct dir *dir_of(struct sim_disk *d, const char *path,
                          const char **name)
{
    const char *slash = strchr(path, '/');
    *name = slash == NULL ? path : slash + 1;
    CHECK(strlen(*name) > 0 && strlen(*name) < NAME_SIZE);
    return dir_find(d, path, slash == NULL ? 0 : (size_t)(slash - path));
}

static void dir_apply(struct name **list, const struct dir_change *c)
{
    if (c->gone[0] != 0) {
        name_set(list, c->gone, NULL);
    }
    name_set(list, c->name, c->inode);
}

static void dir_change_pop(struct dir *dir)
{
    struct dir_change *c = dir->first;
    dir->first = c->next;
    if (dir->first == NULL) {
        dir->last = &dir->first;
    }
    inode_unref(c->inode);
    mem_free(c);
}

static void dir_do(struct dir *dir, const char *name, const char *gone,
                   struct inode *inode)
{
    struct dir_change *c = mem_alloc(sizeof *c);
    snprintf(c->name, sizeof c->name, "%s", name);
    snprintf(c->gone, sizeof c->gone, "%s", gone);
    c->inode = inode_ref(inode);
    dir_apply(&dir->live, c);
    *dir->last = c;
    dir->last = &c->next;
}

static struct dir *dir_new(struct sim_disk *d, const char *path)
{
    CHECK(d->dir_count < DIRS_MAX && strlen(path) < NAME_SIZE);
    struct dir *dir = &d->dirs[d->dir_count++];
    memset(dir, 0, sizeof *dir);
    snprintf(dir->path, sizeof dir->path, "%s", path);
    dir->last = &dir->first;
    return dir;
}

static void dir_clear(struct dir *dir)
{
    names_free(&dir->base);
    names_free(&dir->live);
    while (dir->first != NULL) {
        dir_change_pop(dir);
    }
}

/* ---- files ---- */

static void buf_write(struct buf *b, uint64_t offset, const uint8_t *data,
                      size_t size)
{
    CHECK(offset + size < (1u << 30));
    if (b->size < offset) {
        size_t gap = offset - b->size;
        memset(buf_extend(b, gap), 0, gap);
    }
    if (b->size < offset + size) {
        buf_extend(b, offset + size - b->size);
    }
    if (size > 0) {
        memcpy(b->data + offset, data, size);
    }
}

static void buf_cut(struct buf *b, uint64_t size)
{
    CHECK(size < (1u << 30));
    if (b->size < size) {
        memset(buf_extend(b, size - b->size), 0, size - b->size);
    }
    b->size = size;
}

static void change_apply(struct buf *b, const struct change *c, size_t from,
                         size_t size)
{
    if (c->is_truncate) {
        buf_cut(b, c->offset);
    } else {
        buf_write(b, c->offset + from, c->data + from, size);
    }
}

static void change_add(struct inode *i, bool is_truncate, uint64_t offset,
                       const struct slice *parts, uint32_t part_count)
{
    size_t size = 0;
    for (uint32_t p = 0; p < part_count; p++) {
        size += parts[p].size;
    }
    struct change *c = mem_resize(NULL, sizeof *c + size);
    *c = (struct change){.is_truncate = is_truncate, .offset = offset};
    for (uint32_t p = 0; p < part_count; p++) {
        if (parts[p].size > 0) {
            memcpy(c->data + c->size, parts[p].data, parts[p].size);
        }
        c->size += parts[p].size;
    }
    change_apply(&i->live, c, 0, c->size);
    *i->last = c;
    i->last = &c->next;
}

/* ---- space ---- */

static uint64_t disk_used(const struct sim_disk *d)
{
    uint64_t used = 0;
    for (uint32_t i = 0; i < d->dir_count; i++) {
        for (struct name *n = d->dirs[i].live; n != NULL; n = n->next) {
            used += n->inode->live.size;
        }
    }
    return used;
}

static bool disk_has_room(struct sim_disk *d, uint64_t size)
{
    return !d->full || disk_used(d) + size <= d->room;
}

static bool write_fits(struct disk_file *f, uint64_t end)
{
    struct sim_disk *d = f->disk;
    uint64_t size = f->inode->live.size;
    if (d->full && d->copies && sim_chance(d->env->world, 300)) {
        return false;
    }
    return end <= size || disk_has_room(d, end - size);
}

/* As pwritev() does: what fits is written, and ends in any of the parts. */
static void write_some(struct disk_file *f, uint64_t offset,
                       const struct slice *parts, uint64_t size_all)
{
    uint64_t size = sim_between(f->disk->env->world, 0, size_all);
    uint64_t end = offset + size;
    if (end > f->inode->live.size &&
        !disk_has_room(f->disk, end - f->inode->live.size)) {
        return;
    }
    for (uint32_t i = 0; offset < end; i++) {
        uint64_t left = end - offset;
        struct slice some = slice_of(
            parts[i].data, left < parts[i].size ? (size_t)left : parts[i].size);
        change_add(f->inode, false, offset, &some, 1);
        offset += some.size;
    }
}

/* ---- the seam ---- */

/* May a change happen? No when the node is dead, or dies in this very call. */
static bool alive(struct sim_disk *d)
{
    if (d->env->dead) {
        return false;
    }
    if (d->die_after > 0 && --d->die_after == 0) {
        env_fatal(&d->env->env, "power lost in the middle of a job");
        return false;
    }
    return true;
}

static enum err disk_open(struct disk *disk, const char *path, bool create,
                          struct disk_file **out)
{
    struct sim_disk *d = of(disk);
    const char *name;
    struct dir *dir = dir_of(d, path, &name);
    if (d->env->dead) {
        return ERR_IO;
    }
    if (dir == NULL) {
        return ERR_NOTFOUND;
    }
    struct name *n = name_find(dir->live, name);
    struct inode *inode = n != NULL ? n->inode : NULL;
    if (inode == NULL) {
        if (!create) {
            return ERR_NOTFOUND;
        }
        if (!alive(d)) {
            return ERR_IO;
        }
        if (!disk_has_room(d, 1)) {
            return ERR_NOSPACE;
        }
        inode = mem_alloc(sizeof *inode);
        inode->last = &inode->first;
        dir_do(dir, name, "", inode);
    }
    struct disk_file *f = mem_alloc(sizeof *f);
    f->disk = d;
    f->inode = inode_ref(inode);
    d->handles++;
    *out = f;
    return ERR_OK;
}

static void disk_close(struct disk_file *f)
{
    f->disk->handles--;
    inode_unref(f->inode);
    mem_free(f);
}

static enum err disk_size(struct disk_file *f, uint64_t *out)
{
    *out = f->inode->live.size;
    return f->disk->env->dead ? ERR_IO : ERR_OK;
}

static enum err disk_read(struct disk_file *f, uint64_t offset, void *to,
                          size_t size)
{
    const struct buf *live = &f->inode->live;
    if (f->disk->env->dead) {
        return ERR_IO;
    }
    if (offset > live->size || size > live->size - offset) {
        return ERR_CORRUPT;
    }
    if (size > 0) {
        memcpy(to, live->data + offset, size);
    }
    return ERR_OK;
}

static enum err disk_write(struct disk_file *f, uint64_t offset,
                           const struct slice *parts, uint32_t part_count)
{
    if (!alive(f->disk)) {
        return ERR_IO;
    }
    uint64_t end = offset;
    for (uint32_t i = 0; i < part_count; i++) {
        end += parts[i].size;
    }
    if (!write_fits(f, end)) {
        write_some(f, offset, parts, end - offset);
        if (f->disk->die_after == 0) {
            f->disk->die_after = f->disk->die_after_full;
            f->disk->die_after_full = 0;
        }
        return ERR_NOSPACE;
    }
    change_add(f->inode, false, offset, parts, part_count);
    return ERR_OK;
}

static enum err disk_truncate(struct disk_file *f, uint64_t size)
{
    if (!alive(f->disk)) {
        return ERR_IO;
    }
    change_add(f->inode, true, size, NULL, 0);
    return ERR_OK;
}

/* Up to where the changes of this sync left the file alone. What is cut off was
 * not written behind anything: then no more is settled than before. */
static size_t settled_after(const struct inode *i)
{
    uint64_t settled = i->base.size;
    bool cut = false;
    for (const struct change *c = i->first; c != NULL; c = c->next) {
        settled = c->offset < settled ? c->offset : settled;
        cut |= c->is_truncate;
    }
    return cut && i->settled < settled ? i->settled : (size_t)settled;
}

/* Who is told that a sync failed does not sync that file again, and nothing
 * else either. It is told a moment later: until then its other workers, which
 * have other files, do not know (and when it stands still, nobody does). */
static void check_sync_again(const struct disk_file *f)
{
    enum { TOLD_US = 1000 };
    const struct sim_disk *d = f->disk;
    const struct sim_env *e = d->env;
    uint64_t from_us = d->sync_failed_us > e->paused_until_us
                           ? d->sync_failed_us
                           : e->paused_until_us;
    if (d->sync_failed_us != 0 &&
        (f->inode->lost || e->world->now_us > from_us + TOLD_US)) {
        sim_fail(e->world, "n%u syncs again after a sync that failed", e->node);
    }
}

static enum err disk_sync(struct disk_file *f)
{
    if (!alive(f->disk)) {
        return ERR_IO;
    }
    struct inode *i = f->inode;
    f->disk->syncs++;
    check_sync_again(f);
    if (f->disk->fail_sync && i->first != NULL) {
        f->disk->sync_failed_us = f->disk->env->world->now_us;
        /* As Linux does: the pages count as clean, and were never written. */
        f->disk->fail_sync = false;
        i->lost = true;
        changes_free(i);
        return ERR_IO;
    }
    if (i->first != NULL) {
        i->settled = settled_after(i);
    }
    while (i->first != NULL) {
        struct change *c = i->first;
        change_apply(&i->base, c, 0, c->size);
        i->first = c->next;
        mem_free(c);
    }
    i->last = &i->first;
    return ERR_OK;
}

static enum err disk_rename(struct disk *disk, const char *from, const char *to)
{
    struct sim_disk *d = of(disk);
    const char *old_name, *new_name;
    struct dir *dir = dir_of(d, from, &old_name);
    CHECK(dir == dir_of(d, to, &new_name));
    struct name *n = dir == NULL ? NULL : name_find(dir->live, old_name);
    if (n == NULL) {
        return d->env->dead ? ERR_IO : ERR_NOTFOUND;
    }
    if (!alive(d)) {
        return ERR_IO;
    }
    dir_do(dir, new_name, old_name, n->inode);
    return ERR_OK;
}

static enum err disk_remove(struct disk *disk, const char *path)
{
    struct sim_disk *d = of(disk);
    const char *name;
    struct dir *dir = dir_of(d, path, &name);
    if (dir == NULL || name_find(dir->live, name) == NULL) {
        return d->env->dead ? ERR_IO : ERR_NOTFOUND;
    }
    if (!alive(d)) {
        return ERR_IO;
    }
    dir_do(dir, name, "", NULL);
    return ERR_OK;
}

static enum err disk_mkdir(struct disk *disk, const char *path)
{
    struct sim_disk *d = of(disk);
    if (!alive(d)) {
        return ERR_IO;
    }
    if (dir_find(d, path, strlen(path)) == NULL) {
        dir_new(d, path);
    }
    return ERR_OK;
}

static enum err disk_sync_dir(struct disk *disk, const char *path)
{
    struct sim_disk *d = of(disk);
    struct dir *dir = dir_find(d, path, strlen(path));
    if (!alive(d)) {
        return ERR_IO;
    }
    if (dir == NULL) {
        return ERR_NOTFOUND;
    }
    d->syncs++;
    while (dir->first != NULL) {
        dir_apply(&dir->base, dir->first);
        dir_change_pop(dir);
    }
    for (uint32_t i = 0; path[0] == 0 && i < d->dir_count; i++) {
        d->dirs[i].synced = true;
    }
    return ERR_OK;
}

static enum err disk_list(struct disk *disk, const char *path,
                          void (*each)(void *arg, const char *name), void *arg)
{
    struct sim_disk *d = of(disk);
    struct dir *dir = dir_find(d, path, strlen(path));
    if (d->env->dead) {
        return ERR_IO;
    }
    if (dir == NULL) {
        return ERR_NOTFOUND;
    }
    for (struct name *n = dir->live; n != NULL; n = n->next) {
        each(arg, n->text);
    }
    return ERR_OK;
}

static enum err disk_space(struct disk *disk, uint64_t *free)
{
    struct sim_disk *d = of(disk);
    uint64_t used = disk_used(d);
    *free = !d->full ? UINT64_MAX : used < d->room ? d->room - used : 0;
    return ERR_OK;
}

static const struct disk_ops ops = {
    .open = disk_open,
    .close = disk_close,
    .size = disk_size,
    .read = disk_read,
    .write = disk_write,
    .truncate = disk_truncate,
    .sync = disk_sync,
    .rename = disk_rename,
    .remove = disk_remove,
    .mkdir = disk_mkdir,
    .sync_dir = disk_sync_dir,
    .space = disk_space,
    .list = disk_list,
};

struct sim_disk *sim_disk_new(struct sim_env *env)
{
    struct sim_disk *d = mem_alloc(sizeof *d);
    d->disk.ops = &ops;
    d->env = env;
    dir_new(d, "")->synced = true;
    return d;
}

void sim_disk_free(struct sim_disk *d)
{
    for (uint32_t i = 0; i < d->dir_count; i++) {
        dir_clear(&d->dirs[i]);
    }
    mem_free(d);
}

struct disk *sim_disk_seam(struct sim_disk *d)
{
    return &d->disk;
}

/* ---- the crash ---- */

enum fate { FATE_KEEP, FATE_DROP, FATE_BEGINNING, FATE_ANY, FATES };

/* A write that reached the platter in part: whole sectors of it. */
static void change_tear(struct sim_world *w, struct buf *b,
                        const struct change *c)
{
    uint64_t sectors = (c->offset + c->size) / SECTOR - c->offset / SECTOR;
    if (c->is_truncate || sectors == 0) {
        return;
    }
    uint64_t border =
        (c->offset / SECTOR + sim_between(w, 1, sectors)) * SECTOR;
    size_t head = (size_t)(border - c->offset);
    if (sim_chance(w, 500)) {
        change_apply(b, c, 0, head);
    } else {
        change_apply(b, c, head, c->size - head);
    }
}

static void inode_crash(struct sim_world *w, struct inode *i)
{
    if (i->first == NULL) {
        return;
    }
    enum fate fate = (enum fate)sim_between(w, 0, FATES - 1);
    bool ended = fate == FATE_DROP;
    for (struct change *c = i->first; c != NULL; c = c->next) {
        bool keep = fate == FATE_KEEP || (!ended && sim_chance(w, 600));
        if (keep) {
            change_apply(&i->base, c, 0, c->size);
        } else if (!ended) {
            change_tear(w, &i->base, c);
            ended = fate == FATE_BEGINNING;
        }
    }
    changes_free(i);
}

static void inode_settle(struct sim_world *w, struct inode *i)
{
    if (i->first == NULL && !i->lost) {
        return; /* all is synced, so both are the same */
    }
    i->lost = false;
    inode_crash(w, i);
    buf_clear(&i->live);
    buf_write(&i->live, 0, i->base.data, i->base.size);
}

static void dir_crash(struct sim_disk *d, struct dir *dir)
{
    struct sim_world *w = d->env->world;
    if (!dir->synced && sim_chance(w, 500)) {
        dir_clear(dir); /* the directory itself is gone */
        return;
    }
    bool keep = true;
    while (dir->first != NULL) {
        keep = keep && sim_chance(w, 700);
        if (keep) {
            dir_apply(&dir->base, dir->first);
        }
        dir_change_pop(dir);
    }
    names_copy(&dir->live, dir->base);
    for (struct name *n = dir->live; n != NULL; n = n->next) {
        inode_settle(w, n->inode);
    }
}

void sim_disk_crash(struct sim_disk *d)
{
    CHECK(d->handles == 0);
    sim_disk_calm(d);
    d->sync_failed_us = 0;
    for (uint32_t i = 0; i < d->dir_count; i++) {
        dir_crash(d, &d->dirs[i]);
    }
}

void sim_disk_die_after(struct sim_disk *d, uint32_t count)
{
    d->die_after = count;
}

void sim_disk_die_after_full(struct sim_disk *d, uint32_t count)
{
    d->die_after_full = count;
}

void sim_disk_fail_sync(struct sim_disk *d)
{
    d->fail_sync = true;
}

bool sim_disk_sync_failed(const struct sim_disk *d)
{
    return d->sync_failed_us != 0;
}

void sim_disk_fill(struct sim_disk *d, uint64_t slack)
{
    d->full = true;
    d->copies = sim_chance(d->env->world, 300);
    d->room = disk_used(d) + slack;
}

void sim_disk_copy(struct sim_disk *d)
{
    d->copies = true;
}

void sim_disk_empty(struct sim_disk *d)
{
    d->full = false;
}

bool sim_disk_is_full(const struct sim_disk *d)
{
    return d->full;
}

static void flip(struct name *n, const struct sim_rot *rot)
{
    n->inode->base.data[rot->at] ^= rot->bit;
    n->inode->live.data[rot->at] ^= rot->bit;
}

bool sim_disk_rot(struct sim_disk *d, struct sim_rot *rot)
{
    struct dir *dir = dir_find(d, "wal", 3);
    struct name *files[64];
    uint32_t count = 0;
    for (struct name *n = dir == NULL ? NULL : dir->base;
         n != NULL && count < 64; n = n->next) {
        if (n->inode->settled > 0 && n->inode->settled <= n->inode->base.size) {
            files[count++] = n;
        }
    }
    if (count == 0) {
        return false;
    }
    struct sim_world *w = d->env->world;
    struct name *n = files[sim_between(w, 0, count - 1)];
    snprintf(rot->name, sizeof rot->name, "%s", n->text);
    rot->at = sim_between(w, 0, n->inode->settled - 1);
    rot->bit = (uint8_t)(1u << sim_between(w, 0, 7));
    flip(n, rot);
    return true;
}

void sim_disk_unrot(struct sim_disk *d, const struct sim_rot *rot)
{
    struct dir *dir = dir_find(d, "wal", 3);
    struct name *n = name_find(dir->base, rot->name);
    CHECK(n != NULL);
    flip(n, rot);
}

void sim_disk_calm(struct sim_disk *d)
{
    d->die_after = d->die_after_full = 0;
    d->fail_sync = false;
}

uint64_t sim_disk_syncs(const struct sim_disk *d)
{
    return d->syncs;
}
