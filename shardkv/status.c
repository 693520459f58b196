/* What a replica says of itself, at once and also without a leader: the numbers
 * of the store are those of the last look at it. */
#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

#include "shardkv/server_int.h"

static void fill_peer(const struct skv_server *s,
                      const struct rsm_status *status,
                      const struct rsm_peer *peer, struct ctl_peer *out)
{
    bool is_self = peer->id == s->config.id;
    *out = (struct ctl_peer){.id = peer->id,
                             .address = slice_text(peer->address),
                             .match = is_self ? status->raft.persisted : 0,
                             .active = is_self};
    for (uint32_t i = 0; !is_self && i < status->raft.peer_count; i++) {
        if (status->raft.peers[i].id == peer->id) {
            out->match = status->raft.peers[i].match;
            out->active = status->raft.peers[i].active;
        }
    }
}

/* The worst thing this replica knows, in words; empty when all is well. */
static void fill_problem(const struct skv_server *s,
                         const struct rsm_status *status,
                         const struct ctl_peer *peers, char *words, size_t size)
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
    for (uint32_t i = 0; i < s->config.peer_count; i++) {
        if (!peers[i].active) {
            snprintf(words, size, "replica %" PRIu64 " at %s does not answer",
                     s->config.peers[i].id, s->config.peers[i].address);
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
    struct ctl_peer peers[RAFT_PEERS_MAX];
    char problem[160];
    struct buf b = {0};
    rsm_status(s->rsm, &status);
    for (uint32_t i = 0; i < s->config.peer_count; i++) {
        fill_peer(s, &status, &s->config.peers[i], &peers[i]);
    }
    fill_problem(s, &status, peers, problem, sizeof problem);
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
        .peers_count = s->config.peer_count,
    };
    ctl_status_encode(&b, &out);
    net_reply(s->net, request, ERR_OK, buf_slice(&b));
    buf_free(&b);
    skv_mover_refresh(&s->mover);
}
