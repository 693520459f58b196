/* Which values are large. Both stores keep "is a blob" as part of a value, and
 * change it by these functions alone: state machines branch on is_inline, so
 * replicas on either store must agree on it after every history.
 *
 *   put         inline up to SKV_INLINE_SIZE_MAX bytes, else a blob
 *   put_range   becomes a blob when the length passes that, and never goes back
 *   truncate    the same; to 0 it becomes inline again
 *
 * So a blob may be short. Its bytes could only move back into LMDB by reading
 * them while an operation is applied, and after a crash they may be newer than
 * the operation (store.h). */
#include "shardkv/store_int.h"

struct skv_shape skv_shape_put(uint64_t size)
{
    return (struct skv_shape){
        .exists = true, .length = size, .blob = size > SKV_INLINE_SIZE_MAX};
}

static struct skv_shape resized(struct skv_shape old, uint64_t length)
{
    return (struct skv_shape){
        .exists = true,
        .length = length,
        .blob = old.blob || length > SKV_INLINE_SIZE_MAX,
    };
}

struct skv_shape skv_shape_put_range(struct skv_shape old, uint64_t offset,
                                     uint64_t size)
{
    /* As pwrite(): no bytes at an offset past the end extend nothing. */
    uint64_t end = size == 0 ? 0 : offset + size;
    return resized(old, end > old.length ? end : old.length);
}

struct skv_shape skv_shape_truncate(struct skv_shape old, uint64_t length)
{
    old.blob = old.blob && length > 0;
    return resized(old, length);
}

enum err skv_store_key_check(struct slice key)
{
    if (key.size == 0) {
        return ERR_INVALID;
    }
    return key.size > SKV_STORE_KEY_SIZE_MAX ? ERR_TOOBIG : ERR_OK;
}
