/* How the runner and its processes speak: structs over a socket that keeps
 * their bounds. Both come from one build. */
#ifndef TESTS_REAL_CONTROL_H
#define TESTS_REAL_CONTROL_H

#include <limits.h>
#include <sys/types.h>

#include "tests/labs/group.h"
#include "tests/lib/faultnet.h"

enum {
    REAL_NODES_MAX = 64, /* by number: a process serves at port + number */
    REAL_CONTROL_FD = 3, /* in the process */
    REAL_ANSWER_MS = 20000,
    /* Whoever looks every few ms, and comes so late, did not get to run: of an
     * election timeout less than half. */
    REAL_STILL_US = 200000,
};

enum real_kind { REAL_RAFT, REAL_CONTROLLER, REAL_GROUP };

/* What a process's net does. */
struct real_net {
    struct faultnet_plan plan;
    uint64_t cut; /* bit: the number of a process that it does not reach */
};

struct real_node {
    enum real_kind kind;
    uint32_t number, port; /* of number 0 */
    char dir[PATH_MAX];    /* its data; beside it DIR.log and DIR.counts */
    char certs[PATH_MAX], name[32];
    uint32_t group;
    raft_id id;
    uint32_t first, count; /* its group: the numbers, with ids from 1 */
    uint32_t controllers_first, controllers_count;
    uint64_t seed;
    unsigned options; /* of REAL_RAFT: enum lab_option */
    /* Of the others; see rsm_config. */
    uint32_t shards, checkpoint_ms_max;
    size_t checkpoint_size_max, wal_segment_size, log_keep_size, log_hold_size;
    struct real_net net;
};

enum real_ask_kind {
    REAL_ASK_STATE, /* REAL_STATE */
    REAL_ASK_BEGIN, /* REAL_BEGUN */
    REAL_ASK_NET,   /* REAL_DONE */
    REAL_ASK_SIZES, /* REAL_STATE, with what the last checkpoint stored */
};

struct real_ask {
    enum real_ask_kind kind;
    uint32_t count;
    size_t size;
    uint64_t values[LAB_COMMANDS_MAX];
    struct real_net net;
};

enum real_note_kind {
    /* By itself: */
    REAL_READY,     /* it serves */
    REAL_APPLIED,   /* or restored: `index` */
    REAL_INSTALLED, /* a snapshot: what it applied comes again, from 1 */
    REAL_LEADS,     /* `term` */
    /* Answers: */
    REAL_STATE,
    REAL_BEGUN,
    REAL_DONE,
};

struct real_state {
    raft_term term;
    bool leader;
    raft_index stored; /* applied by the state machine on disk */
    size_t log_size;
    uint32_t log_files;
    /* REAL_ASK_SIZES; see kv_sizes. 0: there is none. */
    size_t snapshot_size, stream_size;
};

struct real_note {
    enum real_note_kind kind;
    raft_index index;
    raft_term term;
    struct lab_entry entry;
    struct real_state state;
    struct lab_begun begun[LAB_COMMANDS_MAX];
};

/* What a process has sent, in memory that it shares with the runner: both map
 * DIR.counts, so that kill -9 loses none. */
struct real_counts {
    struct lab_counts net;
    uint64_t stood_still_us; /* its loop; see REAL_STILL_US */
};
struct real_counts *real_counts_map(const char *dir);
void real_counts_unmap(struct real_counts *counts);

#endif
