/* Keys and bytes of the filesystem in the store; docs/keys-fs.md has the same
 * tables. Pure functions.
 *
 * An inode number is shard (16 bits) | counter (48 bits), and its keys are the
 * number (8 bytes, big-endian), a kind, and the rest. */
#ifndef FS_KEYS_H
#define FS_KEYS_H

#include "fs/fs.h"

enum fs_kind {
    FS_KEY_ATTR = 'a',    /* attributes, below */
    FS_KEY_CONTENT = 'c', /* bytes of a file, target of a link; its length is
                             st_size; missing means empty */
    FS_KEY_ENTRY = 'd',   /* + name, in a directory: inode (8 bytes,
                             big-endian), type (mode >> 12) */
    FS_KEY_XATTR = 'x',   /* + name */
    /* In the shard's own object, FS_OBJECT_SHARD: */
    FS_KEY_NEXT = 'n',   /* 8 bytes, little-endian: counters given out */
    FS_KEY_ORPHAN = 'o', /* + mount id, inode (big-endian); no value */
};

#define FS_OBJECT_SHARD 0xfffffffffffeull
#define FS_ENTRY_SIZE   9u

/* Attributes. Little-endian. What changes together lies together, so that one
 * PUT_RANGE does it.
 *
 *   offset  size  field
 *        0     2  format   1
 *        2     2  state    1 has a name, 2 removed but open somewhere
 *        4     4  mode     type and permissions
 *        8     4  uid
 *       12     4  gid
 *       16     8  nlink
 *       24     8  rdev
 *       32     8  parent   of a directory, else 0
 *       40    16  mtime    seconds (8, signed), nanoseconds (4), zero (4)
 *       56    16  ctime
 *       72    16  atime
 *       88    16  btime                                                    */
#define FS_ATTR_STATE  0u
#define FS_ATTR_MODE   4u
#define FS_ATTR_UID    8u
#define FS_ATTR_GID    12u
#define FS_ATTR_NLINK  16u
#define FS_ATTR_RDEV   24u
#define FS_ATTR_PARENT 32u
#define FS_ATTR_MTIME  40u
#define FS_ATTR_CTIME  56u
#define FS_ATTR_ATIME  72u
#define FS_ATTR_BTIME  88u
#define FS_ATTR_SIZE   104u
#define FS_TIME_SIZE   16u
#define FS_OWNER_SIZE  FS_ATTR_NLINK /* state, mode, uid, gid */
_Static_assert(FS_ATTR_UID == FS_ATTR_MODE + 4 && FS_ATTR_GID == 12,
               "docs/keys-fs.md");
_Static_assert(FS_ATTR_CTIME == FS_ATTR_MTIME + FS_TIME_SIZE,
               "mtime and ctime are written as one");
_Static_assert(FS_ATTR_SIZE == FS_ATTR_BTIME + FS_TIME_SIZE, "docs/keys-fs.md");

#define FS_FORMAT  1u
#define FS_LIVE    1u
#define FS_REMOVED 2u

static inline uint32_t fs_shard(uint64_t ino)
{
    return (uint32_t)(ino >> 48);
}
static inline uint64_t fs_ino(uint32_t shard, uint64_t counter)
{
    return (uint64_t)shard << 48 | counter;
}

/* In memory of `a`. */
struct slice fs_key(struct arena *a, uint64_t ino, uint8_t kind,
                    struct slice rest);
struct slice fs_key_object(struct arena *a, uint64_t ino); /* all its keys */
struct slice fs_key_orphan(struct arena *a, uint64_t mount_id, uint64_t ino);

void fs_attr_encode(const struct fs_attr *attr, uint8_t to[FS_ATTR_SIZE]);
/* Sets all but ino and size. ERR_CORRUPT. */
MUST_USE enum err fs_attr_decode(struct slice from, struct fs_attr *attr);
void fs_time_encode(struct timespec t, uint8_t to[FS_TIME_SIZE]);

void fs_entry_encode(uint64_t ino, uint32_t mode, uint8_t to[FS_ENTRY_SIZE]);
MUST_USE enum err fs_entry_decode(struct slice from, uint64_t *ino,
                                  uint32_t *type);

/* 1 to 255 bytes, no slash, not . or .. */
MUST_USE enum err fs_name_check(const char *name);

#endif
