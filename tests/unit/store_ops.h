/* What the tests of the stores do to both of them: random operations, and
 * comparing what comes out. Include after cmocka. */
#ifndef TESTS_UNIT_STORE_OPS_H
#define TESTS_UNIT_STORE_OPS_H

#include "base/rng.h"
#include "shardkv/store_int.h"

enum op_kind {
    OP_PUT,
    OP_PUT_RANGE,
    OP_APPEND,
    OP_TRUNCATE,
    OP_PUNCH,
    OP_REMOVE,
    OP_KINDS
};

struct op {
    enum op_kind kind;
    uint32_t key;
    uint64_t offset;
    uint64_t number; /* of bytes; of a truncate: the length */
    uint8_t fill;
};

enum { OP_DATA_MAX = 20 << 10, OP_KEY_ROOM = 512 };

/* On one of the first `keys` keys. Their names begin with one another, and a
 * few are long. */
struct op some_op(struct rng *r, uint32_t keys);
enum err run_op(struct skv_store *s, const struct op *op);
struct slice key_name(uint32_t key, char name[OP_KEY_ROOM]);

/* Each fails the test when a and b differ. */
void compare_key(struct skv_store *a, struct skv_store *b, uint32_t key);
void compare_read(struct skv_store *a, struct skv_store *b, struct slice key,
                  uint64_t offset, size_t size);
/* Keys, lengths and inline bytes; `limit` keys at most. */
void compare_scan(struct skv_store *a, struct skv_store *b, struct slice prefix,
                  struct slice from, uint32_t limit);
/* All of it. Gives the number of blobs. */
uint32_t compare_all(struct skv_store *a, struct skv_store *b);

/* The store as of its last checkpoint, as a stream; and back. */
void view_into(struct skv_store *s, struct buf *stream);
enum err install_from(struct skv_store *s, const struct buf *stream,
                      uint64_t index, size_t step_max);

/* Regular files below. */
uint32_t count_files(const char *path);

#endif
