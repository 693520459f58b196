/* What the files of fs/ share. Each part's comment is at its code. */
#ifndef FS_FS_INT_H
#define FS_FS_INT_H

#include <fcntl.h>
#include <pthread.h>
#include <uthash.h>

#include "base/rng.h"
#include "fs/fs.h"
#include "fs/keys.h"

enum { FS_HINTS = 1024 };

/* What a directory gave last time for an owner compare. Never trusted: the
 * transaction that uses it compares it. */
struct fs_hint {
    uint64_t ino; /* 0: unused */
    uint32_t mode, uid, gid;
};

/* Counters [next, end) of one shard are this mount's to give out. */
struct fs_range {
    uint64_t next, end;
};

struct fs {
    struct fs_store *store;
    uint64_t mount_id;

    pthread_mutex_t call_lock; /* guards the calls and their fields */
    pthread_cond_t call_woken; /* a call was cancelled */
    struct fs_call *calls;
    bool cancel_all;

    pthread_mutex_t ino_lock; /* guards the next four; never held in exec */
    struct fs_range *ranges;  /* by shard */
    uint32_t range_count;
    uint32_t next_shard; /* for the next directory */
    struct rng rng;
    struct fs_hint hints[FS_HINTS];

    pthread_mutex_t open_lock; /* guards the table and its entries */
    pthread_cond_t open_changed;
    struct fs_open *opens;
};

/* ---- txn.c: building and running a transaction ---- */

struct fs_txn {
    struct fs_call *call;
    struct arena arena; /* keys and data */
    uint32_t count;
    struct skv_txn run;
    struct skv_item items[SKV_ITEMS_MAX]; /* only `count` are set */
};

void fs_txn_init(struct fs_txn *t, struct fs_call *call);
void fs_txn_fini(struct fs_txn *t);
/* Gives the item, all else zero, to be filled in. A transaction has room for
 * SKV_ITEMS_MAX; what could need more asks fs_txn_room() first. */
struct skv_item *fs_txn_add(struct fs_txn *t, enum skv_kind kind,
                            struct slice key);
uint32_t fs_txn_room(const struct fs_txn *t);
/* As fs_store exec(); or ERR_INTERRUPTED. */
MUST_USE enum err fs_txn_run(struct fs_txn *t);
const struct skv_result *fs_txn_result(const struct fs_txn *t, uint32_t item);

struct slice fs_key_attr(struct fs_txn *t, uint64_t ino);
struct slice fs_key_content(struct fs_txn *t, uint64_t ino);
struct slice fs_key_entry(struct fs_txn *t, uint64_t parent, const char *name);

/* Compares: the inode is there; is there and has a name; has this state, mode
 * and owner; entry is as it was read. */
void fs_txn_exists(struct fs_txn *t, uint64_t ino);
void fs_txn_live(struct fs_txn *t, uint64_t ino);
void fs_txn_owner(struct fs_txn *t, const struct fs_attr *attr);
void fs_txn_bytes(struct fs_txn *t, struct slice key, uint64_t offset,
                  const void *data, size_t size);
/* Writes to attributes, at fixed offsets. The inode must be compared with in
 * the same transaction, or be known to live by a compare of its entry. */
void fs_txn_put_u32(struct fs_txn *t, uint64_t ino, uint32_t at, uint32_t v);
void fs_txn_put_u64(struct fs_txn *t, uint64_t ino, uint32_t at, uint64_t v);
void fs_txn_put_time(struct fs_txn *t, uint64_t ino, uint32_t at,
                     struct timespec v);
void fs_txn_touch(struct fs_txn *t, uint64_t ino,
                  struct timespec now); /* m+c */
void fs_txn_add_nlink(struct fs_txn *t, uint64_t ino, int64_t delta);
void fs_txn_put_entry(struct fs_txn *t, uint64_t parent, const char *name,
                      uint64_t ino, uint32_t mode);

/* Pauses that grow, with jitter, between attempts after a conflict. */
struct fs_retry {
    uint32_t attempts;
};
MUST_USE enum err fs_retry_pause(struct fs_call *call, struct fs_retry *r);
bool fs_call_cancelled(struct fs_call *call);
struct timespec fs_now(void);

/* ---- inode.c ---- */

struct fs_entry {
    bool found;
    uint64_t ino;
    uint8_t bytes[FS_ENTRY_SIZE]; /* as stored, to compare with */
    struct fs_attr attr;
};
/* A missing name is ERR_OK with !found. The attributes are of the same moment
 * when the inode is in the directory's shard, and of a later one if not. */
MUST_USE enum err fs_entry_read(struct fs_call *call, uint64_t parent,
                                const char *name, struct fs_entry *out);
MUST_USE enum err fs_attr_read(struct fs_call *call, uint64_t ino,
                               struct fs_attr *out); /* or ERR_STALE */
/* Adds two reads to `t` and, after it ran, decodes them from `item` on. */
void fs_txn_read_attr(struct fs_txn *t, uint64_t ino);
MUST_USE enum err fs_txn_decode_attr(struct fs_txn *t, uint32_t item,
                                     uint64_t ino, struct fs_attr *out);

/* The mode after a write or a truncation by the caller. */
uint32_t fs_mode_written(const struct fs_call *call, uint32_t mode);

void fs_hint_keep(struct fs *fs, const struct fs_attr *attr);
/* The directory's attributes: ino, mode, uid, gid only, maybe old. */
MUST_USE enum err fs_hint_get(struct fs_call *call, uint64_t ino,
                              struct fs_attr *out);
void fs_hint_drop(struct fs *fs, uint64_t ino);
/* ERR_OK if a name may be made in `parent`, else why not. Fresh. */
MUST_USE enum err fs_parent_check(struct fs_call *call, uint64_t parent);

MUST_USE enum err fs_ino_new(struct fs_call *call, uint32_t shard,
                             uint64_t *out);
/* Where the next directory goes. */
MUST_USE enum err fs_shard_pick(struct fs_call *call, uint32_t *out);

/* ---- remove.c ---- */

/* Adds to `t` what takes one name from a file, or the only one from a directory
 * that must be empty. `open_here`: the inode is kept for who has it open. Sets
 * *last if this was the last name. */
void fs_txn_unlink(struct fs_txn *t, const struct fs_attr *victim,
                   bool open_here, struct timespec now, bool *last);
/* ERR_NOTEMPTY if it has an entry. */
MUST_USE enum err fs_dir_check_empty(struct fs_call *call, uint64_t ino);
MUST_USE enum err fs_orphan_delete(struct fs_call *call, uint64_t mount_id,
                                   uint64_t ino);

/* ---- data.c ---- */

MUST_USE enum err fs_content_truncate(struct fs_call *call, struct fs_open *o);

/* ---- open.c ---- */

struct fs_file {
    struct fs_open *open;
};
MUST_USE enum err fs_open_begin(struct fs_call *call, uint64_t ino,
                                struct fs_open **out);
enum err fs_open_end(struct fs_call *call, struct fs_open *o);
uint64_t fs_open_ino(const struct fs_open *o);
/* Between these two nobody opens or closes `ino` here. */
MUST_USE enum err fs_remove_begin(struct fs_call *call, uint64_t ino,
                                  bool *open_here);
void fs_remove_end(struct fs *fs, uint64_t ino, bool orphaned);
/* Carries out a truncation that was put off, if there is one. */
bool fs_open_pending(struct fs *fs, uint64_t ino);
MUST_USE enum err fs_open_settle(struct fs_call *call, uint64_t ino);
enum fs_write_how {
    FS_WRITE_INTO,    /* what is there */
    FS_WRITE_FIRST,   /* nothing was there when this mount made the file */
    FS_WRITE_REPLACE, /* all: a truncation was put off */
};
/* How to write at `offset`. After all but FS_WRITE_INTO, fs_open_wrote() must
 * follow. */
MUST_USE enum err fs_open_write(struct fs_call *call, struct fs_open *o,
                                uint64_t offset, bool append,
                                enum fs_write_how *how);
void fs_open_wrote(struct fs *fs, struct fs_open *o, bool done);
/* May the file have set-id bits that a write must clear? */
bool fs_open_setid(struct fs *fs, const struct fs_open *o);
void fs_open_note_mode(struct fs *fs, uint64_t ino, uint32_t mode);

#endif
