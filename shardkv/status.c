/* What a replica says of itself, at once and also without a leader: the numbers
 * of the store are those of the last look at it. */
#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

#include "shardkv/server_int.h"

/* The worst thing this replica knows, in words; empty when all is well. */
static void fill_problem(const struct skv_server *s,
                         const struct rsm_status *status,
                         const struct rsm_member *members, uint32_t count,
                         char *words, size_t size)
{
    const struct skv_picture *p = &s->mover.picture;
    words[0] = '\0';
    if (status->raft.leader == 0) {
        snprintf(words, size, "no leader known: is a majority running?");
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
    uint32_t pulling = skv_picture_count(p, SKV_SHARD_PULLING);
    uint32_t frozen = skv_picture_count(p, SKV_SHARD_FROZEN);
    if (pulling + frozen > 0) {
        snprintf(words, size, "moving: %u shards arrive, %u leave", pulling,
                 frozen);
    }
}

void skv_status_reply(struct skv_server *s, struct net_request *request)
{
    struct rsm_status status;
    struct rsm_member members[RAFT_PEERS_MAX];
    struct ctl_peer peers[RAFT_PEERS_MAX];
    char problem[160];
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
    struct ctl_status out = {
        .gid = s->config.gid,
        .id = s->config.id,
        .role = (uint8_t)status.raft.role,
        .term = status.raft.term,
        .leader = status.raft.leader,
        .first_index = status.raft.first_index,
        .last_index = status.raft.last_index,
        .commit = status.raft.commit,
        .applied = status.applied,
        .durable = status.durable,
        .config_number = s->mover.picture.number,
        .pid = (uint64_t)getpid(),
        .uptime_ms = (env_now_us(s->env) - s->started_us) / 1000,
        .keys = s->mover.picture.keys,
        .bytes = s->mover.picture.bytes,
        .certificate_end_s = s->config.certificate_end_s,
        .problem = slice_text(problem),
        .peers = peers,
        .peers_count = count,
    };
    ctl_status_encode(&b, &out);
    net_reply(s->net, request, ERR_OK, buf_slice(&b));
    buf_free(&b);
    skv_mover_refresh(&s->mover);
}
