/* What may be asked of a shard. A request that passes skv_request_check() is
 * safe to execute: each size in it is bounded, no sum of offset and size wraps,
 * and no key leaves the shard or touches its object 0. What depends on the
 * stored values (a compare with a large value, say) is the executor's. */
#include "shardkv/request.h"

#include "base/check.h"

MSG_CODEC(skv_item, SKV_ITEM_FIELDS)
MSG_CODEC(skv_scan_entry, SKV_SCAN_ENTRY_FIELDS)
MSG_CODEC(skv_scan, SKV_SCAN_FIELDS)
MSG_CODEC(skv_shard_ref, SKV_SHARD_FIELDS)
MSG_CODEC(skv_request, SKV_REQUEST_FIELDS)
MSG_CODEC(skv_result, SKV_RESULT_FIELDS)
MSG_CODEC(skv_reply, SKV_REPLY_FIELDS)

enum { SCAN_BYTES_DEFAULT = 1 << 20, SCAN_ENTRIES_MAX = 65536 };

bool skv_kind_is_compare(uint8_t kind)
{
    return kind >= SKV_CMP_EXISTS && kind <= SKV_CMP_EMPTY;
}

bool skv_kind_is_read(uint8_t kind)
{
    return kind >= SKV_GET && kind <= SKV_SCAN;
}

bool skv_kind_is_write(uint8_t kind)
{
    return kind >= SKV_PUT && kind <= SKV_PUNCH;
}

static enum err check_key(struct slice key, uint16_t shard)
{
    if (key.size < SKV_OBJECT_SIZE) {
        return ERR_INVALID;
    }
    if (key.size > SKV_KEY_SIZE_MAX) {
        return ERR_TOOBIG;
    }
    uint64_t id = get_be64(key.data);
    uint64_t object = id & SKV_OBJECT_KV;
    return id >> 48 == shard && object != 0 ? ERR_OK : ERR_INVALID;
}

/* An indirect key gets eight more bytes in front; that they are of this shard
 * is seen only when the value of `via` is. */
static enum err check_item_key(const struct skv_item *item, uint16_t shard)
{
    if (item->via.size == 0) {
        return check_key(item->key, shard);
    }
    if (item->key.size > SKV_KEY_SIZE_MAX - SKV_OBJECT_SIZE) {
        return ERR_TOOBIG;
    }
    return check_key(item->via, shard);
}

enum err skv_extent_check(uint64_t offset, uint64_t size)
{
    bool fits =
        offset <= SKV_VALUE_SIZE_MAX && size <= SKV_VALUE_SIZE_MAX - offset;
    return fits ? ERR_OK : ERR_TOOBIG;
}

/* `*asked`: the most that the item may add to the reply. */
static enum err check_scan(const struct skv_item *item, uint64_t *asked)
{
    size_t object = item->via.size == 0 ? 0 : SKV_OBJECT_SIZE;
    if (object + item->key.size + item->data.size > SKV_KEY_SIZE_MAX ||
        item->number > SCAN_ENTRIES_MAX || item->offset > SKV_DATA_SIZE_MAX) {
        return ERR_TOOBIG;
    }
    *asked = item->offset == 0 ? SCAN_BYTES_DEFAULT : item->offset;
    return ERR_OK;
}

static enum err check_item_sizes(const struct skv_item *item, uint64_t *asked)
{
    switch ((enum skv_kind)item->kind) {
    case SKV_CMP_EXISTS:
    case SKV_CMP_ABSENT:
    case SKV_CMP_LENGTH:
    case SKV_CMP_EMPTY:
    case SKV_LENGTH:
    case SKV_DELETE:
    case SKV_DELETE_PREFIX:
    case SKV_PUT:
    case SKV_APPEND: return ERR_OK; /* the sum of data is the only bound */
    case SKV_CMP_BYTES:
    case SKV_PUT_RANGE: return skv_extent_check(item->offset, item->data.size);
    case SKV_GET:
        if (item->number > SKV_DATA_SIZE_MAX) {
            return ERR_TOOBIG;
        }
        *asked = item->number;
        return skv_extent_check(item->offset, 0);
    case SKV_SCAN: return check_scan(item, asked);
    case SKV_TRUNCATE: return skv_extent_check(item->number, 0);
    case SKV_ADD: return skv_extent_check(item->offset, sizeof(uint64_t));
    case SKV_PUNCH: return skv_extent_check(item->offset, item->number);
    }
    return ERR_INVALID; /* no such kind */
}

static enum err check_items(const struct skv_request *request, bool *writes)
{
    uint64_t data_size = 0;
    uint64_t asked_size = 0;
    *writes = false;
    for (uint32_t i = 0; i < request->items_count; i++) {
        const struct skv_item *item = &request->items[i];
        uint64_t asked = 0;
        enum err rc = check_item_sizes(item, &asked);
        if (rc == ERR_OK) {
            rc = check_item_key(item, request->shard);
        }
        if (rc != ERR_OK) {
            return rc;
        }
        data_size += item->data.size;
        asked_size += asked;
        *writes |= skv_kind_is_write(item->kind);
    }
    bool fits =
        data_size <= SKV_DATA_SIZE_MAX && asked_size <= SKV_DATA_SIZE_MAX;
    return fits ? ERR_OK : ERR_TOOBIG;
}

/* Each participant once, and this shard among them: whoever resolves the
 * transaction later asks exactly these. */
static enum err check_participants(const struct skv_request *request)
{
    bool found = false;
    for (uint32_t i = 0; i < request->participants_count; i++) {
        uint16_t shard = request->participants[i].shard;
        found |= shard == request->shard;
        for (uint32_t k = 0; k < i; k++) {
            if (request->participants[k].shard == shard) {
                return ERR_INVALID;
            }
        }
    }
    return found ? ERR_OK : ERR_INVALID;
}

/* Whatever changes a shard needs a name, or a retry would be executed twice. */
static enum err check_name(const struct skv_request *request, bool changes)
{
    if (changes && (request->session == 0 || request->sequence == 0)) {
        return ERR_INVALID;
    }
    return request->first <= request->sequence ? ERR_OK : ERR_INVALID;
}

enum err skv_request_check(const struct skv_request *request)
{
    if (request->items_count > SKV_ITEMS_MAX ||
        request->participants_count > SKV_PARTICIPANTS_MAX) {
        return ERR_TOOBIG;
    }
    if (request->phase > SKV_RESOLVE ||
        (request->flags & ~(SKV_FLAG_OPEN | SKV_FLAG_RETRY)) != 0) {
        return ERR_INVALID;
    }
    bool writes = false;
    enum err rc = check_items(request, &writes);
    if (rc == ERR_OK) {
        rc = check_name(request, writes || request->phase != SKV_EXECUTE);
    }
    if (rc == ERR_OK && request->phase == SKV_PREPARE) {
        rc = check_participants(request);
    }
    return rc;
}

void skv_key_of_name(struct buf *key, struct slice name, uint32_t shard_count)
{
    CHECK(shard_count > 0 && shard_count <= UINT16_MAX + 1u);
    uint64_t shard = crc32c(0, name) % shard_count;
    set_be64(buf_extend(key, SKV_OBJECT_SIZE), shard << 48 | SKV_OBJECT_KV);
    buf_append(key, name.data, name.size);
}
