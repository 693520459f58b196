/* What a replica says of itself, at once and also without a leader: the numbers
 * of the store are those of the last look at it. */
#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

#include "shardctrler/server.h"
#include "shardkv/server_int.h"

enum { STUCK_AFTER_US = 5000000 };

/* At the pace since this leader began. */
static uint64_t left_ms(const struct skv_pulling *p, uint64_t now_us)
{
    uint64_t copied = p->cursor.bytes - p->begun_bytes;
    if (p->stage != CTL_MOVE_COPY || copied == 0 ||
        p->bytes_all <= p->cursor.bytes) {
        return 0;
    }
    double pace = (double)(now_us - p->begun_us) / 1000 / (double)copied;
    return (uint64_t)(pace * (double)(p->bytes_all - p->cursor.bytes)) + 1;
}

static uint32_t fill_moves(const struct skv_server *s, struct ctl_move *moves)
{
    uint64_t now_us = env_now_us(s->env);
    uint32_t count = 0;
    for (const struct skv_task *t = s->mover.tasks; t != NULL; t = t->next) {
        if (t->kind == SKV_TASK_PULL && count < CTL_STATUS_MOVES_MAX) {
            const struct skv_pulling *p = &t->pull;
            moves[count++] = (struct ctl_move){
                .shard = t->shard,
                .from = t->group.gid,
                .stage = (uint8_t)p->stage,
                .keys = p->cursor.keys,
                .keys_all = p->keys_all,
                .bytes = p->cursor.bytes,
                .bytes_all = p->bytes_all,
                .left_ms = left_ms(p, now_us),
            };
        }
    }
    return count;
}

/* A shard that does not come any further. */
static void fill_stuck(const struct skv_server *s, char *words, size_t size)
{
    uint64_t now_us = env_now_us(s->env);
    for (const struct skv_task *t = s->mover.tasks; t != NULL; t = t->next) {
        if (t->kind == SKV_TASK_PULL && now_us > t->pull.moved_us &&
            now_us - t->pull.moved_us > STUCK_AFTER_US) {
            snprintf(words, size,
                     "shard %u does not come from group %u for %" PRIu64
                     " s: is a majority of that group running?",
                     t->shard, t->group.gid,
                     (now_us - t->pull.moved_us) / 1000000);
            return;
        }
    }
}

/* The worst thing this replica knows, in words; empty when all is well. */
static void fill_problem(const struct skv_server *s,
                         const struct rsm_status *status,
                         const struct rsm_member *members, uint32_t count,
                         char *words, size_t size)
{
    rsm_space_problem(status, words, size);
    if (words[0] == '\0') {
        rsm_forgot_problem(status, s->config.gid, words, size);
    }
    if (words[0] != '\0') {
        return;
    }
    if (status->raft.leader == 0) {
        snprintf(words, size,
                 "no leader known: do a majority run, and reach each other?");
        return;
    }
    if (status->raft.role != RAFT_LEADER) {
        return;
    }
    for (uint32_t i = 0; i < count; i++) {
        if (!members[i].active) {
            snprintf(words, size, "replica %" PRIu64 " at %.*s does not answer",
                     members[i].id, (int)members[i].address.size,
                     (const char *)members[i].address.data);
            return;
        }
    }
    fill_stuck(s, words, size);
}

void skv_status_reply(struct skv_server *s, struct net_request *request)
{
    struct rsm_status status;
    struct rsm_member members[RAFT_PEERS_MAX];
    struct ctl_peer peers[RAFT_PEERS_MAX];
    struct ctl_move moves[CTL_STATUS_MOVES_MAX];
    const struct skv_picture *p = &s->mover.picture;
    char problem[512];
    struct buf b = {0};
    rsm_status(s->rsm, &status);
    uint32_t count = rsm_member_list(s->rsm, members);
    for (uint32_t i = 0; i < count; i++) {
        peers[i] = (struct ctl_peer){.id = members[i].id,
                                     .address = members[i].address,
                                     .match = members[i].match,
                                     .active = members[i].active};
    }
    fill_problem(s, &status, members, count, problem, sizeof problem);
    struct ctl_spread spreads[CTL_SPREADS];
    ctl_status_spreads(&status, spreads);
    struct ctl_status out = {
        .gid = s->config.gid,
        .id = s->config.id,
        .role = (uint8_t)status.raft.role,
        .term = status.raft.term,
        .leader = status.raft.leader,
        .first_index = status.raft.snapshot_index + 1,
        .last_index = status.raft.last_index,
        .commit = status.raft.commit,
        .applied = status.applied,
        .durable = status.durable,
        .config_number = p->number,
        .pid = (uint64_t)getpid(),
        .uptime_ms = (env_now_us(s->env) - s->started_us) / 1000,
        .keys = p->keys,
        .bytes = p->bytes,
        .certificate_end_s = s->config.certificate_end_s,
        .problem = slice_text(problem),
        .peers = peers,
        .peers_count = count,
        .arriving = skv_picture_count(p, SKV_SHARD_PULLING),
        .leaving = skv_picture_leaving(p),
        .moves = moves,
        .moves_count = fill_moves(s, moves),
        .checkpoints = status.stall.count,
        .spreads = spreads,
        .spreads_count = CTL_SPREADS,
    };
    ctl_status_encode(&b, &out);
    net_reply(s->net, request, ERR_OK, buf_slice(&b));
    buf_free(&b);
    skv_mover_refresh(&s->mover);
}
