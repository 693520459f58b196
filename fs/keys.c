#include "fs/keys.h"

#include <string.h>

#include "base/codec.h"

struct slice fs_key(struct arena *a, uint64_t ino, uint8_t kind,
                    struct slice rest)
{
    size_t size = SKV_OBJECT_SIZE + 1 + rest.size;
    uint8_t *key = arena_alloc(a, size);
    set_be64(key, ino);
    key[SKV_OBJECT_SIZE] = kind;
    if (rest.size > 0) {
        memcpy(key + SKV_OBJECT_SIZE + 1, rest.data, rest.size);
    }
    return slice_of(key, size);
}

struct slice fs_key_object(struct arena *a, uint64_t ino)
{
    uint8_t *key = arena_alloc(a, SKV_OBJECT_SIZE);
    set_be64(key, ino);
    return slice_of(key, SKV_OBJECT_SIZE);
}

struct slice fs_key_orphan(struct arena *a, uint64_t mount_id, uint64_t ino)
{
    uint8_t rest[16];
    set_be64(rest, mount_id);
    set_be64(rest + 8, ino);
    return fs_key(a, fs_ino(fs_shard(ino), FS_OBJECT_SHARD), FS_KEY_ORPHAN,
                  slice_of(rest, sizeof rest));
}

void fs_time_encode(struct timespec t, uint8_t to[FS_TIME_SIZE])
{
    set_u64(to, (uint64_t)t.tv_sec);
    set_u32(to + 8, (uint32_t)t.tv_nsec);
    set_u32(to + 12, 0);
}

static bool time_decode(const uint8_t *from, struct timespec *t)
{
    t->tv_sec = (time_t)get_u64(from);
    t->tv_nsec = (long)get_u32(from + 8);
    return t->tv_nsec < 1000000000 && get_u32(from + 12) == 0;
}

void fs_attr_encode(const struct fs_attr *attr, uint8_t to[FS_ATTR_SIZE])
{
    uint32_t state = attr->removed ? FS_REMOVED : FS_LIVE;
    set_u32(to + FS_ATTR_STATE, FS_FORMAT | state << 16);
    set_u32(to + FS_ATTR_MODE, attr->mode);
    set_u32(to + FS_ATTR_UID, attr->uid);
    set_u32(to + FS_ATTR_GID, attr->gid);
    set_u64(to + FS_ATTR_NLINK, attr->nlink);
    set_u64(to + FS_ATTR_RDEV, attr->rdev);
    set_u64(to + FS_ATTR_PARENT, attr->parent);
    fs_time_encode(attr->mtime, to + FS_ATTR_MTIME);
    fs_time_encode(attr->ctime, to + FS_ATTR_CTIME);
    fs_time_encode(attr->atime, to + FS_ATTR_ATIME);
    fs_time_encode(attr->btime, to + FS_ATTR_BTIME);
}

enum err fs_attr_decode(struct slice from, struct fs_attr *attr)
{
    if (from.size != FS_ATTR_SIZE) {
        return ERR_CORRUPT;
    }
    const uint8_t *p = from.data;
    uint32_t state = get_u32(p + FS_ATTR_STATE);
    bool ok = (state & 0xffff) == FS_FORMAT &&
              (state >> 16 == FS_LIVE || state >> 16 == FS_REMOVED);
    attr->removed = state >> 16 == FS_REMOVED;
    attr->mode = get_u32(p + FS_ATTR_MODE);
    attr->uid = get_u32(p + FS_ATTR_UID);
    attr->gid = get_u32(p + FS_ATTR_GID);
    attr->nlink = get_u64(p + FS_ATTR_NLINK);
    attr->rdev = get_u64(p + FS_ATTR_RDEV);
    attr->parent = get_u64(p + FS_ATTR_PARENT);
    ok = time_decode(p + FS_ATTR_MTIME, &attr->mtime) && ok;
    ok = time_decode(p + FS_ATTR_CTIME, &attr->ctime) && ok;
    ok = time_decode(p + FS_ATTR_ATIME, &attr->atime) && ok;
    ok = time_decode(p + FS_ATTR_BTIME, &attr->btime) && ok;
    return ok ? ERR_OK : ERR_CORRUPT;
}

void fs_entry_encode(uint64_t ino, uint32_t mode, uint8_t to[FS_ENTRY_SIZE])
{
    set_be64(to, ino);
    to[8] = (uint8_t)((mode & S_IFMT) >> 12);
}

enum err fs_entry_decode(struct slice from, uint64_t *ino, uint32_t *type)
{
    if (from.size != FS_ENTRY_SIZE || from.data[8] > 15) {
        return ERR_CORRUPT;
    }
    *ino = get_be64(from.data);
    *type = (uint32_t)from.data[8] << 12;
    return ERR_OK;
}

enum err fs_name_check(const char *name)
{
    size_t size = strnlen(name, FS_NAME_SIZE_MAX + 1);
    if (size > FS_NAME_SIZE_MAX) {
        return ERR_NAMETOOLONG;
    }
    if (size == 0 || strcmp(name, ".") == 0 || strcmp(name, "..") == 0 ||
        strchr(name, '/') != NULL) {
        return ERR_INVALID;
    }
    return ERR_OK;
}

struct stat fs_attr_stat(const struct fs_attr *attr)
{
    struct stat st = {
        .st_ino = attr->ino,
        .st_mode = attr->mode,
        .st_nlink = attr->nlink,
        .st_uid = attr->uid,
        .st_gid = attr->gid,
        .st_rdev = attr->rdev,
        .st_size = (off_t)attr->size,
        .st_blksize = 1 << 17,
        .st_blocks = (blkcnt_t)((attr->size + 511) / 512),
        .st_atim = attr->atime,
        .st_mtim = attr->mtime,
        .st_ctim = attr->ctime,
    };
    return st;
}
