/* A hash table finds keys; a skip list (Pugh 1990) keeps them in order, and is
 * walked only when a key comes for the first time and when something is read in
 * order. Measured: a search of the list among 100,000 keys takes 1.1 us, of the
 * table 0.1. Invariants:
 *
 *  1. Each node is in the table and in the list.
 *  2. Nodes, keys and records lie in chunks that do not move. Nodes have chunks
 *     of their own: a search looks at many, and records of 4 KiB between them
 *     would put each on another page.
 *  3. A record that fits is written over the one before it; else it gets a new
 *     place, with room to grow, since what grows is mostly appended to again.
 *  4. A node that was erased is used again, with its record's place, by the
 *     next one that is as high: what comes and goes stays in the processor's
 *     cache.
 */
#include "shardkv/delta.h"

#include <string.h>

#include "base/check.h"
#include "base/codec.h"
#include "base/rng.h"

enum {
    CHUNK_SIZE = 256 << 10,
    CHUNKS_KEPT = 16, /* 4 MiB */
    HEIGHT_MAX = 12,
    TABLE_MIN = 1024,
    ALIGNMENT = 8,
    /* LMDB's: what a node in a leaf may take, the head of one, and of a page.
     */
    NODE_SIZE_MAX = 2038,
    NODE_HEAD_SIZE = 8,
    PAGE_HEAD_SIZE = 16,
};

struct chunk {
    struct chunk *next;
    size_t used;
    uint8_t bytes[CHUNK_SIZE];
};

/* The first bytes of a key as numbers, which compare as the bytes do: most
 * comparisons need no more, and look at nothing but the node. */
struct head {
    uint64_t high, low;
};

struct skv_delta_node {
    struct head head;
    uint8_t *record;
    uint32_t size, capacity; /* of the record */
    uint16_t key_size, key_room;
    bool removed;
    bool below; /* as it was when the key came */
    uint8_t height;
    struct skv_delta_node *next[]; /* `height` of them; then the key */
};

struct slot {
    struct skv_delta_node *node; /* NULL: free */
    uint32_t hash;
};

struct skv_delta {
    struct chunk *nodes;   /* the first one is being filled */
    struct chunk *records; /* likewise */
    struct chunk *kept;    /* empty ones */
    uint32_t kept_count;
    struct skv_delta_node *heads[HEIGHT_MAX];
    struct skv_delta_node
        *erased[HEIGHT_MAX]; /* by height less 1; by next[0] */
    struct slot *table;      /* open addressing; a power of two */
    uint64_t table_size, count;
    uint64_t taken; /* of the chunks */
    uint64_t pages; /* of large records */
    uint64_t seed;  /* of the hash: nobody can choose keys that collide */
    struct rng rng;
};

/* ---- memory ---- */

static struct chunk *chunk_take(struct skv_delta *d)
{
    struct chunk *c = d->kept;
    if (c == NULL) {
        c = mem_resize(NULL, sizeof *c);
    } else {
        d->kept = c->next;
        d->kept_count--;
    }
    c->used = 0;
    return c;
}

static void *take(struct skv_delta *d, struct chunk **chunks, size_t size)
{
    size = (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    CHECK(size <= CHUNK_SIZE);
    if (*chunks == NULL || (*chunks)->used + size > CHUNK_SIZE) {
        struct chunk *c = chunk_take(d);
        c->next = *chunks;
        *chunks = c;
    }
    void *at = (*chunks)->bytes + (*chunks)->used;
    (*chunks)->used += size;
    d->taken += size;
    return at;
}

static void chunks_keep(struct skv_delta *d, struct chunk **chunks,
                        uint32_t most)
{
    while (*chunks != NULL) {
        struct chunk *c = *chunks;
        *chunks = c->next;
        if (d->kept_count >= most) {
            mem_free(c);
            continue;
        }
        c->next = d->kept;
        d->kept = c;
        d->kept_count++;
    }
}

static void table_reset(struct skv_delta *d)
{
    uint64_t size = TABLE_MIN;
    while (size < 2 * d->count) {
        size *= 2;
    }
    if (d->table_size < size || d->table_size > 4 * size) {
        mem_free(d->table);
        d->table = mem_array(size, sizeof *d->table);
        d->table_size = size;
    } else {
        memset(d->table, 0, d->table_size * sizeof *d->table);
    }
}

struct skv_delta *skv_delta_new(void)
{
    struct skv_delta *d = mem_alloc(sizeof *d);
    d->seed = rng_entropy();
    d->rng.state = d->seed;
    table_reset(d);
    return d;
}

void skv_delta_clear(struct skv_delta *d)
{
    chunks_keep(d, &d->nodes, CHUNKS_KEPT);
    chunks_keep(d, &d->records, CHUNKS_KEPT);
    table_reset(d);
    memset(d->heads, 0, sizeof d->heads);
    memset(d->erased, 0, sizeof d->erased);
    d->count = d->taken = d->pages = 0;
}

void skv_delta_hand(struct skv_delta *from, struct skv_delta *to)
{
    chunks_keep(to, &from->kept, CHUNKS_KEPT);
    from->kept_count = 0;
}

void skv_delta_free(struct skv_delta *d)
{
    if (d == NULL) {
        return;
    }
    chunks_keep(d, &d->nodes, 0);
    chunks_keep(d, &d->records, 0);
    chunks_keep(d, &d->kept, 0);
    mem_free(d->table);
    mem_free(d);
}

/* ---- the table ---- */

static uint32_t hash_of(const struct skv_delta *d, struct slice key)
{
    uint64_t h = d->seed ^ key.size;
    size_t at = 0;
    for (; at + 8 <= key.size; at += 8) {
        h = (h ^ get_u64(key.data + at)) * UINT64_C(0x9e3779b97f4a7c15);
        h ^= h >> 32;
    }
    for (; at < key.size; at++) {
        h = (h ^ key.data[at]) * UINT64_C(0x9e3779b97f4a7c15);
        h ^= h >> 32;
    }
    return (uint32_t)h;
}

static struct slice key_of(const struct skv_delta_node *n)
{
    return slice_of(&n->next[n->height], n->key_size);
}

/* Where the key is, or the free place where it would go. */
static struct slot *place_of(const struct skv_delta *d, struct slice key,
                             uint32_t hash)
{
    uint64_t at = hash & (d->table_size - 1);
    for (;;) {
        struct slot *s = &d->table[at];
        if (s->node == NULL ||
            (s->hash == hash && s->node->key_size == key.size &&
             memcmp(key_of(s->node).data, key.data, key.size) == 0)) {
            return s;
        }
        at = (at + 1) & (d->table_size - 1);
    }
}

static void table_grow(struct skv_delta *d)
{
    struct slot *old = d->table;
    uint64_t old_size = d->table_size;
    d->table_size *= 2;
    d->table = mem_array(d->table_size, sizeof *d->table);
    for (uint64_t i = 0; i < old_size; i++) {
        if (old[i].node != NULL) {
            *place_of(d, key_of(old[i].node), old[i].hash) = old[i];
        }
    }
    mem_free(old);
}

/* Those behind the gap that could not be where their hash wants them move up
 * (Knuth 6.4, algorithm R). */
static void table_erase(struct skv_delta *d, struct slot *place)
{
    uint64_t mask = d->table_size - 1;
    uint64_t gap = (uint64_t)(place - d->table);
    for (uint64_t at = (gap + 1) & mask; d->table[at].node != NULL;
         at = (at + 1) & mask) {
        uint64_t home = d->table[at].hash & mask;
        if (((at - home) & mask) >= ((at - gap) & mask)) {
            d->table[gap] = d->table[at];
            gap = at;
        }
    }
    d->table[gap].node = NULL;
}

/* ---- the list ---- */

static struct head head_of(struct slice key)
{
    uint8_t bytes[16] = {0};
    if (key.size > 0) {
        memcpy(bytes, key.data,
               key.size < sizeof bytes ? key.size : sizeof bytes);
    }
    return (struct head){.high = get_be64(bytes), .low = get_be64(bytes + 8)};
}

/* Is n's key less? A key that ends within its head has zeros there, and is
 * before or beside what goes on, never behind it. */
static inline bool is_before(const struct skv_delta_node *n, struct head head,
                             struct slice key)
{
    if (n->head.high != head.high) {
        return n->head.high < head.high;
    }
    if (n->head.low != head.low) {
        return n->head.low < head.low;
    }
    return slice_compare(key_of(n), key) < 0;
}

/* The last links before `key`, at each height. */
static void find_links(struct skv_delta *d, struct slice key,
                       struct skv_delta_node **links[HEIGHT_MAX])
{
    struct skv_delta_node **row = d->heads;
    struct head head = head_of(key);
    for (int h = HEIGHT_MAX - 1; h >= 0; h--) {
        while (row[h] != NULL && is_before(row[h], head, key)) {
            row = row[h]->next;
        }
        links[h] = &row[h];
    }
}

static uint8_t some_height(struct skv_delta *d)
{
    uint8_t height = 1;
    uint64_t draw = rng_next(&d->rng);
    while (height < HEIGHT_MAX && draw % 4 == 0) {
        height++;
        draw /= 4;
    }
    return height;
}

/* One with room for the key, and without a record. */
static struct skv_delta_node *node_take(struct skv_delta *d, uint8_t height,
                                        size_t key_size)
{
    struct skv_delta_node *n = d->erased[height - 1];
    if (n != NULL && n->key_room >= key_size) {
        d->erased[height - 1] = n->next[0];
        return n;
    }
    size_t row = height * sizeof(struct skv_delta_node *);
    n = take(d, &d->nodes, sizeof *n + row + key_size);
    *n = (struct skv_delta_node){.key_room = (uint16_t)key_size,
                                 .height = height};
    return n;
}

static struct skv_delta_node *insert(struct skv_delta *d, struct slice key)
{
    struct skv_delta_node **links[HEIGHT_MAX];
    uint8_t height = some_height(d);
    struct skv_delta_node *n = node_take(d, height, key.size);
    n->head = head_of(key);
    n->key_size = (uint16_t)key.size;
    memcpy(&n->next[height], key.data, key.size);
    find_links(d, key, links);
    for (uint8_t h = 0; h < height; h++) {
        n->next[h] = *links[h];
        *links[h] = n;
    }
    d->count++;
    return n;
}

/* ---- both ---- */

static uint64_t pages_of(const struct skv_delta_node *n)
{
    uint64_t size = NODE_HEAD_SIZE + (uint64_t)n->key_size + n->size;
    return size <= NODE_SIZE_MAX
               ? 0
               : (PAGE_HEAD_SIZE + n->size + SKV_PAGE_SIZE - 1) / SKV_PAGE_SIZE;
}

static void size_set(struct skv_delta *d, struct skv_delta_node *n, size_t size)
{
    d->pages -= pages_of(n);
    n->size = (uint32_t)size;
    d->pages += pages_of(n);
}

static struct skv_delta_node *node_for(struct skv_delta *d, struct slice key,
                                       bool below)
{
    CHECK(key.size > 0 && key.size <= UINT16_MAX);
    if (2 * d->count >= d->table_size) {
        table_grow(d);
    }
    uint32_t hash = hash_of(d, key);
    struct slot *place = place_of(d, key, hash);
    if (place->node == NULL) {
        *place = (struct slot){.node = insert(d, key), .hash = hash};
        place->node->below = below;
    }
    return place->node;
}

void skv_delta_put(struct skv_delta *d, struct slice key, struct slice record,
                   bool below)
{
    struct skv_delta_node *n = node_for(d, key, below);
    if (record.size > n->capacity) { /* 3 */
        size_t room = n->capacity == 0 ? record.size : record.size * 3 / 2;
        uint8_t *at = take(d, &d->records, room);
        memcpy(at, record.data, record.size);
        n->record = at;
        n->capacity = (uint32_t)room;
    } else if (record.size > 0) {
        memmove(n->record, record.data, record.size);
    }
    size_set(d, n, record.size);
    n->removed = false;
}

static void erase(struct skv_delta *d, struct slot *place)
{
    struct skv_delta_node **links[HEIGHT_MAX];
    struct skv_delta_node *n = place->node;
    size_set(d, n, 0);
    find_links(d, key_of(n), links);
    for (uint8_t h = 0; h < n->height; h++) {
        CHECK(*links[h] == n);
        *links[h] = n->next[h];
    }
    table_erase(d, place);
    d->count--;
    n->next[0] = d->erased[n->height - 1]; /* 4 */
    d->erased[n->height - 1] = n;
}

void skv_delta_remove(struct skv_delta *d, struct slice key)
{
    struct slot *place = place_of(d, key, hash_of(d, key));
    if (place->node != NULL && !place->node->below) {
        erase(d, place);
        return;
    }
    struct skv_delta_node *n = node_for(d, key, true);
    size_set(d, n, 0);
    n->removed = true;
}

bool skv_delta_find(const struct skv_delta *d, struct slice key,
                    struct skv_delta_entry *out)
{
    if (d->count == 0) {
        return false;
    }
    const struct skv_delta_node *n = place_of(d, key, hash_of(d, key))->node;
    if (n == NULL) {
        return false;
    }
    *out = skv_delta_at(n);
    return true;
}

uint64_t skv_delta_count(const struct skv_delta *d)
{
    return d->count;
}

uint64_t skv_delta_size(const struct skv_delta *d)
{
    return d->taken + d->table_size * sizeof *d->table;
}

uint64_t skv_delta_pages(const struct skv_delta *d)
{
    return d->pages;
}

const struct skv_delta_node *skv_delta_seek(const struct skv_delta *d,
                                            struct slice from)
{
    struct skv_delta_node *const *row = d->heads;
    struct head head = head_of(from);
    for (int h = HEIGHT_MAX - 1; h >= 0; h--) {
        while (row[h] != NULL && is_before(row[h], head, from)) {
            row = row[h]->next;
        }
    }
    return row[0];
}

const struct skv_delta_node *skv_delta_next(const struct skv_delta_node *n)
{
    return n->next[0];
}

struct skv_delta_entry skv_delta_at(const struct skv_delta_node *n)
{
    return (struct skv_delta_entry){.key = key_of(n),
                                    .record = slice_of(n->record, n->size),
                                    .removed = n->removed};
}
