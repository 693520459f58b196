/* rename(2) with its flags, in one transaction.
 *
 *  1. Both entries are compared with what was read, so each decision below
 *     still holds when the transaction does.
 *  2. A directory moves to another parent only if, in the same transaction, it
 *     is not above that parent. Let L be the lowest directory above (or equal
 *     to) both the old and the new parent. All parent fields from the new
 *     parent up to L and from the old one up to L are compared, and the mover
 *     is none of the directories below L on the new side. Above L it cannot be
 *     either: what is above L is above the mover too. So no cycle forms,
 *     whatever other renames run; and two that would form one together compare
 *     what the other writes.
 *  3. A directory's `parent` and its parent's link count change with its
 *     entry. */
#include <string.h>

#include "fs/fs_int.h"

/* Deeper than any path the kernel could have walked to. */
enum { DEPTH_MAX = 4096 };
/* Both sides together: each may be in a shard of its own, and six more are
 * named besides. */
enum { CHAIN_MAX = SKV_PARTICIPANTS_MAX - 6 };

struct chain {
    uint64_t *inos; /* the directory itself, its parent, ... the root */
    uint32_t count;
};

struct move {
    uint64_t parent, to_parent;
    const char *name, *to_name;
    bool exchange;
    struct fs_entry from, to;
    struct arena arena;
    struct chain old_chain, new_chain;
    uint32_t old_below, new_below; /* how many of each are below L */
};

static enum err chain_read(struct fs_call *call, struct arena *a, uint64_t ino,
                           struct chain *out)
{
    out->inos = arena_array(a, DEPTH_MAX, sizeof *out->inos);
    out->count = 0;
    for (;;) {
        if (out->count == DEPTH_MAX) {
            return ERR_LOOP;
        }
        out->inos[out->count++] = ino;
        if (ino == FS_INO_ROOT) {
            return ERR_OK;
        }
        struct fs_attr attr;
        enum err rc = fs_attr_read(call, ino, &attr);
        if (rc != ERR_OK || attr.removed || !S_ISDIR(attr.mode)) {
            return rc != ERR_OK && rc != ERR_STALE ? rc : ERR_NOTFOUND;
        }
        ino = attr.parent;
    }
}

static bool chain_has(const struct chain *c, uint64_t ino)
{
    for (uint32_t i = 0; i < c->count; i++) {
        if (c->inos[i] == ino) {
            return true;
        }
    }
    return false;
}

/* Both end at the root, so what they share is a common tail. */
static void chains_split(struct move *m)
{
    m->old_below = m->old_chain.count;
    m->new_below = m->new_chain.count;
    while (m->old_below > 0 && m->new_below > 0 &&
           m->old_chain.inos[m->old_below - 1] ==
               m->new_chain.inos[m->new_below - 1]) {
        m->old_below--;
        m->new_below--;
    }
}

static bool moves_dir(const struct move *m)
{
    return m->parent != m->to_parent &&
           (S_ISDIR(m->from.attr.mode) ||
            (m->exchange && S_ISDIR(m->to.attr.mode)));
}

static enum err chains_read(struct fs_call *call, struct move *m)
{
    if (!moves_dir(m)) {
        return ERR_OK;
    }
    enum err rc = chain_read(call, &m->arena, m->parent, &m->old_chain);
    if (rc == ERR_OK) {
        rc = chain_read(call, &m->arena, m->to_parent, &m->new_chain);
    }
    if (rc != ERR_OK) {
        return rc;
    }
    if (chain_has(&m->new_chain, m->from.ino) ||
        (m->exchange && chain_has(&m->old_chain, m->to.ino))) {
        return ERR_INVALID;
    }
    chains_split(m);
    uint32_t below = m->old_below + m->new_below;
    return below > CHAIN_MAX ? ERR_LOOP : ERR_OK;
}

static void chain_compare(struct fs_txn *t, const struct chain *c,
                          uint32_t below)
{
    for (uint32_t i = 0; i < below; i++) {
        uint8_t parent[8];
        set_u64(parent, c->inos[i + 1]);
        fs_txn_bytes(t, fs_key_attr(t, c->inos[i]), FS_ATTR_PARENT, parent,
                     sizeof parent);
    }
}

/* The flags and the types allow it? */
static enum err move_check(const struct move *m, uint32_t flags, bool *nothing)
{
    if (!m->from.found) {
        return ERR_NOTFOUND;
    }
    if (m->to.found && (flags & FS_RENAME_NOREPLACE) != 0) {
        return ERR_EXISTS;
    }
    *nothing = m->to.found && m->from.ino == m->to.ino;
    if (m->exchange) {
        return m->to.found ? ERR_OK : ERR_NOTFOUND;
    }
    if (!m->to.found || *nothing) {
        return ERR_OK;
    }
    bool from_dir = S_ISDIR(m->from.attr.mode);
    bool to_dir = S_ISDIR(m->to.attr.mode);
    if (from_dir != to_dir) {
        return from_dir ? ERR_NOTDIR : ERR_ISDIR;
    }
    return ERR_OK;
}

static void compare_entries(struct fs_txn *t, const struct move *m)
{
    fs_txn_bytes(t, fs_key_entry(t, m->parent, m->name), 0, m->from.bytes,
                 FS_ENTRY_SIZE);
    struct slice to = fs_key_entry(t, m->to_parent, m->to_name);
    if (m->to.found) {
        fs_txn_bytes(t, to, 0, m->to.bytes, FS_ENTRY_SIZE);
    } else {
        fs_txn_add(t, SKV_CMP_ABSENT, to);
    }
    if (m->parent != m->to_parent) {
        fs_txn_live(t, m->to_parent);
    }
}

/* What moved has a new change time and, if a directory, a new parent. */
static void move_inode(struct fs_txn *t, const struct fs_attr *attr,
                       uint64_t from, uint64_t to, struct timespec now)
{
    fs_txn_put_time(t, attr->ino, FS_ATTR_CTIME, now);
    if (S_ISDIR(attr->mode) && from != to) {
        fs_txn_put_u64(t, attr->ino, FS_ATTR_PARENT, to);
    }
}

static void move_parents(struct fs_txn *t, const struct move *m,
                         struct timespec now)
{
    int64_t from_dir = S_ISDIR(m->from.attr.mode) ? 1 : 0;
    int64_t to_dir = m->to.found && S_ISDIR(m->to.attr.mode) ? 1 : 0;
    bool same = m->parent == m->to_parent;
    fs_txn_touch(t, m->parent, now);
    if (!same) {
        fs_txn_touch(t, m->to_parent, now);
    }
    if (m->exchange) {
        fs_txn_add_nlink(t, m->parent, same ? 0 : to_dir - from_dir);
        fs_txn_add_nlink(t, m->to_parent, same ? 0 : from_dir - to_dir);
    } else {
        fs_txn_add_nlink(t, m->parent, same ? -to_dir : -from_dir);
        fs_txn_add_nlink(t, m->to_parent, same ? 0 : from_dir - to_dir);
    }
}

static void move_entries(struct fs_txn *t, const struct move *m)
{
    fs_txn_put_entry(t, m->to_parent, m->to_name, m->from.ino,
                     m->from.attr.mode);
    if (m->exchange) {
        fs_txn_put_entry(t, m->parent, m->name, m->to.ino, m->to.attr.mode);
    } else {
        fs_txn_add(t, SKV_DELETE, fs_key_entry(t, m->parent, m->name));
    }
}

static enum err move_run(struct fs_call *call, const struct move *m,
                         bool open_here, bool *last)
{
    struct timespec now = fs_now();
    struct fs_txn t;
    fs_txn_init(&t, call);
    compare_entries(&t, m);
    chain_compare(&t, &m->old_chain, m->old_below);
    chain_compare(&t, &m->new_chain, m->new_below);
    if (m->to.found && !m->exchange) {
        fs_txn_unlink(&t, &m->to.attr, open_here, now, last);
    }
    move_entries(&t, m);
    move_inode(&t, &m->from.attr, m->parent, m->to_parent, now);
    if (m->exchange) {
        move_inode(&t, &m->to.attr, m->to_parent, m->parent, now);
    }
    move_parents(&t, m, now);
    enum err rc = fs_txn_run(&t);
    fs_txn_fini(&t);
    return rc;
}

/* As move_run(), while nobody here opens or closes what is replaced. */
static enum err move_replace(struct fs_call *call, const struct move *m)
{
    bool last = false;
    if (!m->to.found || m->exchange) {
        return move_run(call, m, false, &last);
    }
    bool open_here = false;
    enum err rc = fs_remove_begin(call, m->to.ino, &open_here);
    if (rc != ERR_OK) {
        return rc;
    }
    rc = move_run(call, m, open_here, &last);
    fs_remove_end(call->fs, m->to.ino, last && open_here && rc != ERR_CONFLICT);
    if (rc == ERR_OK && last) {
        fs_hint_drop(call->fs, m->to.ino);
    }
    return rc;
}

/* After a conflict: why it can never be; ERR_OK: try again. */
static enum err move_refused(struct fs_call *call, const struct move *m)
{
    enum err rc = fs_parent_check(call, m->to_parent);
    if (rc == ERR_OK && m->to.found && !m->exchange &&
        S_ISDIR(m->to.attr.mode)) {
        rc = fs_dir_check_empty(call, m->to.ino);
    }
    return rc;
}

static enum err move_once(struct fs_call *call, struct move *m, uint32_t flags)
{
    bool nothing = false;
    enum err rc = fs_entry_read(call, m->parent, m->name, &m->from);
    if (rc == ERR_OK) {
        rc = fs_entry_read(call, m->to_parent, m->to_name, &m->to);
    }
    if (rc == ERR_OK) {
        rc = move_check(m, flags, &nothing);
    }
    if (rc != ERR_OK || nothing) {
        return rc;
    }
    rc = chains_read(call, m);
    if (rc == ERR_OK) {
        rc = move_replace(call, m);
    }
    if (rc == ERR_CONFLICT) {
        enum err why = move_refused(call, m);
        rc = why == ERR_OK ? ERR_CONFLICT : why;
    }
    return rc;
}

enum err fs_rename(struct fs_call *call, uint64_t parent, const char *name,
                   uint64_t to_parent, const char *to_name, uint32_t flags)
{
    uint32_t known = FS_RENAME_NOREPLACE | FS_RENAME_EXCHANGE;
    if ((flags & ~known) != 0 || flags == known) {
        return ERR_INVALID;
    }
    struct fs_retry retry = {0};
    enum err rc = fs_name_check(name);
    if (rc == ERR_OK) {
        rc = fs_name_check(to_name);
    }
    while (rc == ERR_OK) {
        struct move m = {
            .parent = parent,
            .name = name,
            .to_parent = to_parent,
            .to_name = to_name,
            .exchange = (flags & FS_RENAME_EXCHANGE) != 0,
        };
        rc = move_once(call, &m, flags);
        arena_free(&m.arena);
        if (rc != ERR_CONFLICT) {
            return rc;
        }
        rc = fs_retry_pause(call, &retry);
    }
    return rc;
}
