/* Snapshots on their way, both ends: shared by snap_make.c and snap_send.c (a
 * leader's), and by snap_receive.c and snap_pieces.c (a follower's).
 *
 * What is sent is a list of pieces, named by their content
 * (raft/storage/snapfile.h). The leader sends the list of names, the manifest;
 * the follower says which of them it does not have; these are sent, many at a
 * time. So a stream goes on where it broke, whoever continues it: the same
 * leader, a follower that was restarted, or a new leader whose snapshot is of a
 * later index. The pieces that differ are sent, and no others. Nothing is
 * assumed about the streams of two replicas but that a name stands for its
 * bytes: what is installed is byte for byte what the last leader has made. */
#ifndef RSM_SNAP_INT_H
#define RSM_SNAP_INT_H

#include "rsm/rsm_int.h"

/* --- Outgoing */

/* A piece on its way: read from the file, sent, answered. */
struct rsm_slot {
    struct env_job job;
    struct rsm_outgoing *o;
    bool used;
    uint32_t piece;
    struct buf bytes;
    enum err rc;
    uint64_t call;
    uint64_t called_us;
};

enum rsm_outgoing_phase {
    RSM_OUT_MAKING,   /* snap_make.c */
    RSM_OUT_ASKING,   /* what is missing? */
    RSM_OUT_MANIFEST, /* it has not got all of it */
    RSM_OUT_PIECES,
};

struct rsm_outgoing {
    struct env_job job;
    struct env_timer timer;
    struct rsm_outgoing *next;
    struct rsm *rsm;
    raft_id peer;
    raft_term term; /* ours as leader */
    struct snap_label label;
    uint64_t rewinds; /* of the state machine, when it got its label */
    char path[32];
    enum rsm_outgoing_phase phase;

    /* The making job's, while it is on a worker. */
    enum err rc;
    enum err fsm_rc;
    void *view;
    bool has_view;
    struct disk_file *file; /* the packed pieces, one after the other */
    uint64_t file_size;     /* set with atomics: the loop shows it meanwhile */
    struct snap_id *ids;
    uint64_t *ends; /* of each piece in the file */
    uint32_t count, capacity;
    struct buf manifest;
    uint32_t crc;

    uint32_t jobs;     /* on workers, slots' too */
    bool stopped;      /* set with atomics: the making looks at it */
    bool paused;       /* after a failure, until the timer fires */
    uint64_t call;     /* of the manifest or a question; 0: none */
    uint64_t heard_ms; /* an answer of the peer's */
    uint32_t tries;    /* pauses since */
    uint32_t timeout_ms;
    uint64_t called_us;
    uint64_t manifest_at;
    uint64_t stored;    /* bytes that the peer has, as it said */
    uint64_t installed; /* of these, while `installing` */
    bool installing;
    uint8_t *todo; /* bit i of byte i/8: piece i is to be sent */
    uint32_t todo_from;
    struct rsm_slot slots[RSM_WINDOW_COUNT];
    size_t window, in_flight; /* bytes */
    uint64_t send_at_us;      /* not before, by the rate */
};

/* snap_make.c */
void rsm_outgoing_submit(struct rsm_outgoing *o, struct env_worker *worker,
                         struct env_job *job, void (*run)(struct env_job *),
                         void (*done)(struct env_job *));
/* Freezes the state and makes the file; then calls rsm_outgoing_made(). */
void rsm_outgoing_make(struct rsm_outgoing *o);
/* On a worker, or when there is none any more: the view and the file go. */
void rsm_outgoing_release(struct rsm_outgoing *o);
void rsm_outgoing_free(struct rsm_outgoing *o);

/* snap_send.c */
void rsm_outgoing_made(struct rsm_outgoing *o);
void rsm_outgoing_finish(struct rsm_outgoing *o, bool ok);
/* After a job: true if nothing more is to be done. */
bool rsm_outgoing_came_back(struct rsm_outgoing *o);

/* --- Incoming */

/* The pieces that this replica has, in the file "snap/pieces", until a snapshot
 * is installed or none is needed any more. Whoever calls has it for itself: the
 * "snap" worker, or the "apply" worker during the install. */
struct rsm_pieces;
struct rsm_pieces *rsm_pieces_new(struct disk *disk);
/* Reads what an earlier life has left; what was not written whole is cut off.
 * Again: does nothing. */
MUST_USE enum err rsm_pieces_open(struct rsm_pieces *p);
bool rsm_pieces_has(const struct rsm_pieces *p, const struct snap_id *id);
/* ERR_CORRUPT: it is not what `id` names. */
MUST_USE enum err rsm_pieces_add(struct rsm_pieces *p, const struct snap_id *id,
                                 struct slice packed);
MUST_USE enum err rsm_pieces_sync(struct rsm_pieces *p);
/* The plain bytes of these pieces, all of which it has; until the next one.
 * `ids` are borrowed. */
struct snap_source *rsm_pieces_source(struct rsm_pieces *p,
                                      const struct snap_id *ids,
                                      uint32_t count);
/* How many of them were read; from any thread. */
uint32_t rsm_pieces_position(const struct rsm_pieces *p);
void rsm_pieces_free(struct rsm_pieces *p); /* the file stays */
void rsm_pieces_forget(struct disk *disk);  /* the file goes */

#endif
