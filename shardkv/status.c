/* What a replica says of itself, at once and also without a leader: the numbers
 * of the store are those of the last look at it. */
#include <inttypes.h>
#include <stdio.h>

#include "shardctrler/status.h"
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

void skv_status_reply(struct skv_server *s, struct net_request *request)
{
    struct ctl_replica_status own;
    struct ctl_move moves[CTL_STATUS_MOVES_MAX];
    const struct skv_picture *p = &s->mover.picture;
    struct buf b = {0};
    ctl_replica_status(s->rsm, s->config.gid, s->started_us, env_now_us(s->env),
                       &own);
    if (own.problem[0] == '\0' && own.status.role == RAFT_LEADER) {
        fill_stuck(s, own.problem, sizeof own.problem);
        own.status.problem = slice_text(own.problem);
    }
    own.status.config_number = p->number;
    own.status.keys = p->keys;
    own.status.bytes = p->bytes;
    own.status.certificate_end_s = s->config.certificate_end_s;
    own.status.arriving = skv_picture_count(p, SKV_SHARD_PULLING);
    own.status.leaving = skv_picture_leaving(p);
    own.status.moves = moves;
    own.status.moves_count = fill_moves(s, moves);
    own.status.controllers_ms = ctl_client_silent_ms(s->mover.ctl);
    ctl_status_encode(&b, &own.status);
    net_reply(s->net, request, ERR_OK, buf_slice(&b));
    buf_free(&b);
    skv_mover_refresh(&s->mover);
}
