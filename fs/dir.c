/* Reading directories.
 *
 *  1. An fs_dir keeps the entries it has read, in name order, and an offset is
 *     a place in that list. So offsets stay good while the directory changes,
 *     and each name that was there all along is given exactly once.
 *  2. Offset 0 forgets the list: rewinddir() sees what changed.
 *  3. `lock` is held while entries are read and given. */
#include <string.h>

#include "base/check.h"
#include "fs/fs_int.h"

enum {
    PAGE_ENTRIES = 2048,
    PAGE_SIZE = 512 << 10,
    PLUS_BATCH = 64, /* attributes read at once */
    DOTS = 2,        /* . and .. come first */
};

struct listed {
    const char *name;
    uint64_t ino;
    uint32_t type;
};

struct fs_dir {
    struct fs_open *open;
    uint64_t parent;
    pthread_mutex_t lock;
    struct arena names;
    struct listed *entries;
    size_t count, capacity;
    bool complete;
};

enum err fs_opendir(struct fs_call *call, uint64_t ino, struct fs_dir **out)
{
    struct fs_open *o;
    enum err rc = fs_open_begin(call, ino, &o);
    if (rc != ERR_OK) {
        return rc;
    }
    struct fs_attr attr;
    rc = fs_attr_read(call, ino, &attr);
    if (rc == ERR_OK && !S_ISDIR(attr.mode)) {
        rc = ERR_NOTDIR;
    }
    if (rc != ERR_OK) {
        fs_open_end(call, o);
        return rc;
    }
    struct fs_dir *dir = mem_alloc(sizeof *dir);
    dir->open = o;
    dir->parent = attr.parent;
    CHECK(pthread_mutex_init(&dir->lock, NULL) == 0);
    *out = dir;
    return ERR_OK;
}

static void dir_forget(struct fs_dir *dir)
{
    arena_free(&dir->names);
    dir->count = 0;
    dir->complete = false;
}

enum err fs_releasedir(struct fs_call *call, struct fs_dir *dir)
{
    enum err rc = fs_open_end(call, dir->open);
    dir_forget(dir);
    mem_free(dir->entries);
    pthread_mutex_destroy(&dir->lock);
    mem_free(dir);
    return rc;
}

/* ---- pages ---- */

static void dir_add(struct fs_dir *dir, struct slice name, uint64_t ino,
                    uint32_t type)
{
    if (dir->count == dir->capacity) {
        dir->capacity = dir->capacity == 0 ? 64 : dir->capacity * 2;
        dir->entries =
            mem_resize(dir->entries, dir->capacity * sizeof *dir->entries);
    }
    char *copy = arena_alloc(&dir->names, name.size + 1);
    memcpy(copy, name.data, name.size);
    copy[name.size] = '\0';
    dir->entries[dir->count++] =
        (struct listed){.name = copy, .ino = ino, .type = type};
}

static enum err page_decode(struct fs_dir *dir, const struct skv_scan *page)
{
    size_t skip = SKV_OBJECT_SIZE + 1;
    for (uint32_t i = 0; i < page->entries_count; i++) {
        const struct skv_scan_entry *e = &page->entries[i];
        uint64_t ino;
        uint32_t type;
        if (e->key.size <= skip || e->key.size > skip + FS_NAME_SIZE_MAX) {
            return ERR_CORRUPT;
        }
        enum err rc = fs_entry_decode(e->head, &ino, &type);
        if (rc != ERR_OK) {
            return rc;
        }
        dir_add(dir, slice_of(e->key.data + skip, e->key.size - skip), ino,
                type);
    }
    return ERR_OK;
}

static enum err page_read(struct fs_call *call, struct fs_dir *dir)
{
    struct fs_txn t;
    fs_txn_init(&t, call);
    struct skv_item *scan =
        fs_txn_add(&t, SKV_SCAN, fs_key_entry(&t, fs_open_ino(dir->open), ""));
    if (dir->count > 0) {
        scan->data = slice_text(dir->entries[dir->count - 1].name);
    }
    scan->number = PAGE_ENTRIES;
    scan->offset = PAGE_SIZE;
    struct skv_scan page = {0};
    enum err rc = fs_txn_run(&t);
    if (rc == ERR_OK) {
        rc = err_from_wire(fs_txn_result(&t, 0)->rc);
    }
    if (rc == ERR_OK) {
        rc = skv_scan_decode(fs_txn_result(&t, 0)->data, &t.arena, &page);
    }
    if (rc == ERR_OK) {
        bool more = fs_txn_result(&t, 0)->number != 0;
        rc = page_decode(dir, &page);
        dir->complete = !more;
        /* More, but nothing given: it would go on for ever. */
        rc = more && page.entries_count == 0 ? ERR_CORRUPT : rc;
    }
    fs_txn_fini(&t);
    return rc;
}

/* Has entry `index`? Reads on if need be. */
static enum err dir_reach(struct fs_call *call, struct fs_dir *dir,
                          uint64_t index, bool *reached)
{
    enum err rc = ERR_OK;
    while (rc == ERR_OK && index >= dir->count && !dir->complete) {
        rc = page_read(call, dir);
    }
    *reached = index < dir->count;
    return rc;
}

/* ---- attributes along with entries ---- */

struct batch {
    uint64_t first; /* entry that attrs[0] is of */
    uint32_t count;
    bool known[PLUS_BATCH];
    struct fs_attr attrs[PLUS_BATCH];
};

/* Those in the directory's own shard, in one transaction: all files that were
 * made here. The others are left to a lookup, should somebody need them. */
static enum err batch_read(struct fs_call *call, const struct fs_dir *dir,
                           uint64_t first, struct batch *b)
{
    uint32_t shard = fs_shard(fs_open_ino(dir->open));
    uint32_t at[PLUS_BATCH];
    size_t left = dir->count - first;
    b->first = first;
    b->count = left < PLUS_BATCH ? (uint32_t)left : PLUS_BATCH;
    struct fs_txn t;
    fs_txn_init(&t, call);
    for (uint32_t i = 0; i < b->count; i++) {
        uint64_t ino = dir->entries[first + i].ino;
        b->known[i] = fs_shard(ino) == shard && !fs_open_pending(call->fs, ino);
        at[i] = t.count;
        if (b->known[i]) {
            fs_txn_read_attr(&t, ino);
        }
    }
    enum err rc = t.count == 0 ? ERR_OK : fs_txn_run(&t);
    for (uint32_t i = 0; i < b->count && rc == ERR_OK; i++) {
        b->known[i] = b->known[i] &&
                      fs_txn_decode_attr(&t, at[i], dir->entries[first + i].ino,
                                         &b->attrs[i]) == ERR_OK;
    }
    fs_txn_fini(&t);
    return rc;
}

static enum err batch_get(struct fs_call *call, const struct fs_dir *dir,
                          uint64_t index, struct batch *b,
                          const struct fs_attr **out)
{
    if (index < b->first || index >= b->first + b->count) {
        enum err rc = batch_read(call, dir, index, b);
        if (rc != ERR_OK) {
            return rc;
        }
    }
    *out = b->known[index - b->first] ? &b->attrs[index - b->first] : NULL;
    return ERR_OK;
}

/* ---- giving entries ---- */

static bool give_dot(const struct fs_dir *dir, uint64_t offset,
                     fs_dirent_fn *each, void *arg)
{
    struct fs_dirent e = {
        .name = offset == 0 ? "." : "..",
        .ino = offset == 0 ? fs_open_ino(dir->open) : dir->parent,
        .type = S_IFDIR,
        .next = offset + 1,
    };
    return each(arg, &e);
}

static enum err give(struct fs_call *call, struct fs_dir *dir, uint64_t offset,
                     struct batch *plus, fs_dirent_fn *each, void *arg)
{
    for (bool room = true; room; offset++) {
        if (offset < DOTS) {
            room = give_dot(dir, offset, each, arg);
            continue;
        }
        bool reached;
        enum err rc = dir_reach(call, dir, offset - DOTS, &reached);
        if (rc != ERR_OK || !reached) {
            return rc;
        }
        const struct fs_attr *attr = NULL;
        if (plus != NULL) {
            rc = batch_get(call, dir, offset - DOTS, plus, &attr);
            if (rc != ERR_OK) {
                return rc;
            }
        }
        const struct listed *l = &dir->entries[offset - DOTS];
        struct fs_dirent e = {.name = l->name,
                              .ino = l->ino,
                              .type = l->type,
                              .next = offset + 1,
                              .attr = attr};
        room = each(arg, &e);
    }
    return ERR_OK;
}

enum err fs_readdir(struct fs_call *call, struct fs_dir *dir, uint64_t offset,
                    bool plus, fs_dirent_fn *each, void *arg)
{
    struct batch *batch = plus ? mem_alloc(sizeof *batch) : NULL;
    pthread_mutex_lock(&dir->lock);
    if (offset == 0) {
        dir_forget(dir);
    }
    enum err rc = give(call, dir, offset, batch, each, arg);
    pthread_mutex_unlock(&dir->lock);
    mem_free(batch);
    return rc;
}
