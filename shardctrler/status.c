#include "shardctrler/status.h"

#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

static void say_silent_peer(const struct ctl_status *s, char *words,
                            size_t size)
{
    for (uint32_t i = 0; i < s->peers_count; i++) {
        const struct ctl_peer *p = &s->peers[i];
        if (!p->active) {
            snprintf(words, size, "replica %" PRIu64 " at %.*s does not answer",
                     p->id, (int)p->address.size,
                     (const char *)p->address.data);
            return;
        }
    }
}

static void fill_problem(const struct rsm_status *status, uint32_t gid,
                         const struct ctl_status *out, char *words, size_t size)
{
    rsm_space_problem(status, words, size);
    if (words[0] == '\0') {
        rsm_forgot_problem(status, gid, words, size);
    }
    if (words[0] != '\0') {
        return;
    }
    if (status->raft.leader == 0) {
        snprintf(words, size,
                 "no leader known: do a majority run, and reach each other?");
    } else if (status->raft.role == RAFT_LEADER) {
        say_silent_peer(out, words, size);
    }
}

static uint32_t fill_peers(struct rsm *rsm, struct ctl_peer *peers)
{
    struct rsm_member members[RAFT_PEERS_MAX];
    uint32_t count = rsm_member_list(rsm, members);
    for (uint32_t i = 0; i < count; i++) {
        peers[i] = (struct ctl_peer){.id = members[i].id,
                                     .address = members[i].address,
                                     .match = members[i].match,
                                     .active = members[i].active};
    }
    return count;
}

static struct ctl_spread spread_of(const struct rsm_spread *s)
{
    return (struct ctl_spread){
        .p50 = s->p50_us, .p99 = s->p99_us, .max = s->max_us};
}

void ctl_replica_status(struct rsm *rsm, uint32_t gid, uint64_t started_us,
                        uint64_t now_us, struct ctl_replica_status *out)
{
    struct rsm_status status;
    rsm_status(rsm, &status);
    out->spreads[CTL_SPREAD_STALL] = spread_of(&status.stall);
    out->spreads[CTL_SPREAD_BUSY] = spread_of(&status.busy);
    out->spreads[CTL_SPREAD_WRITE] = spread_of(&status.write);
    out->status = (struct ctl_status){
        .gid = gid,
        .id = status.raft.id,
        .role = (uint8_t)status.raft.role,
        .term = status.raft.term,
        .leader = status.raft.leader,
        .first_index = status.raft.snapshot_index + 1,
        .last_index = status.raft.last_index,
        .commit = status.raft.commit,
        .applied = status.applied,
        .durable = status.durable,
        .pid = (uint64_t)getpid(),
        .uptime_ms = (now_us - started_us) / 1000,
        .peers = out->peers,
        .peers_count = fill_peers(rsm, out->peers),
        .checkpoints = status.stall.count,
        .spreads = out->spreads,
        .spreads_count = CTL_SPREADS,
    };
    fill_problem(&status, gid, &out->status, out->problem, sizeof out->problem);
    out->status.problem = slice_text(out->problem);
}
