/* Targets for libFuzzer: one per decoder of bytes from a disk, a peer or a
 * user. A target may do anything with its input but crash, leak, hang or take
 * memory without a bound; what it promises beyond that it CHECKs. */
#ifndef TESTS_FUZZ_FUZZ_H
#define TESTS_FUZZ_FUZZ_H

#include "base/check.h"
#include "base/codec.h"

struct fuzz_target {
    const char *name;
    void (*run)(struct slice input);
    void (*seed)(void); /* calls fuzz_seed() with each input to begin with */
    uint32_t size_max;  /* of an input; 0: 4096 */
};

// clang-format off
#define FUZZ_TARGETS(X)                                                       \
    X(raft_msg) X(raft_conf) X(rsm_messages)                                  \
    X(ctl_messages) X(ctl_command) X(ctl_state)                               \
    X(skv_messages) X(skv_request) X(skv_command) X(skv_pull) X(skv_arrival)  \
    X(store_stream) X(snapfile) X(wal) X(archive)                                      \
    X(frame) X(identity) X(cluster_json) X(options) X(fs_values) X(kv_txn)
// clang-format on
#define X(name) extern const struct fuzz_target fuzz_##name;
FUZZ_TARGETS(X)
#undef X

/* Keeps an input as a file of the corpus. */
void fuzz_seed(struct slice input);

/* An input of several parts: u16 size and bytes, again and again. Any bytes
 * are such a list; the last part may be cut short. */
bool fuzz_part(struct dec *d, struct slice *part);
void fuzz_add_part(struct buf *b, struct slice part);

/* encode(decode(x)) is x: nothing is dropped, and nothing has two forms. */
void fuzz_same(const struct buf *encoded, struct slice input);

/* A table of messages of one folder; an input begins with its place in it. */
struct fuzz_message {
    void (*try)(struct slice body);
};
#define FUZZ_MESSAGE(type)                                                     \
    static void try_##type(struct slice body)                                  \
    {                                                                          \
        struct arena a = {0};                                                  \
        struct buf b = {0};                                                    \
        struct type m;                                                         \
        if (type##_decode(body, &a, &m) == ERR_OK) {                           \
            type##_encode(&b, &m);                                             \
            fuzz_same(&b, body);                                               \
        }                                                                      \
        buf_free(&b);                                                          \
        arena_free(&a);                                                        \
    }
void fuzz_try_message(const struct fuzz_message *table, uint32_t count,
                      struct slice input);
/* A seed of zeros and one of ones for each: enough to find the fields. */
void fuzz_seed_messages(uint32_t count);
/* A seed for message `at`: takes the body. */
void fuzz_seed_message(uint32_t at, struct buf *body);

#endif
