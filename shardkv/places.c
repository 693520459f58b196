/* Where groups are reached, when their members change.
 *
 * Clerks and other groups must find ours: the leader compares who votes in its
 * group with what the configuration says, and asks the controllers for one that
 * says the same. Our own log may be held up at an older configuration while a
 * shard is on its way, so what was told is remembered, too.
 *
 * And we must find others: the configuration that a task goes by may be old, so
 * after a round in vain the newest is looked up, for its addresses alone. */
#include <inttypes.h>

#include "base/log.h"
#include "shardkv/server_int.h"

enum {
    PLACE_MS = 30000,
    AGAIN_US = 1000000,
    LOOK_UP_MS = 5000,
    LOOK_UP_STEPS_MAX = 1000
};

bool skv_places_changed(struct skv_mover *m)
{
    raft_index index = 0;
    (void)raft_conf_newest(rsm_raft(m->server->rsm), &index);
    bool changed = index != m->members_index;
    m->members_index = index;
    return changed;
}

/* False while the configuration is joint: it ends soon. */
static bool voters(const struct skv_mover *m,
                   struct rsm_member members[RAFT_PEERS_MAX],
                   struct ctl_server servers[RAFT_PEERS_MAX],
                   struct ctl_group *out)
{
    uint32_t count = rsm_member_list(m->server->rsm, members);
    *out = (struct ctl_group){.gid = m->server->config.gid, .servers = servers};
    for (uint32_t i = 0; i < count; i++) {
        if (members[i].role == RSM_ARRIVING || members[i].role == RSM_LEAVING ||
            members[i].address.size == 0) {
            return false;
        }
        if (members[i].role == RSM_VOTER) {
            servers[out->servers_count++] = (struct ctl_server){
                .id = members[i].id, .address = members[i].address};
        }
    }
    return out->servers_count > 0;
}

/* ERR_EXISTS: the newest configuration says so already. */
static void placed(void *arg, enum err rc, uint64_t number)
{
    struct skv_mover *m = arg;
    m->placing = false;
    if (rc == ERR_OK || rc == ERR_EXISTS) {
        m->told_index = m->placing_index;
        m->told_number = number;
        log_info("shardkv",
                 "told the controllers who serves group=%u "
                 "configuration=%" PRIu64,
                 m->server->config.gid, number);
    }
    if (m->leading && !m->closing) {
        env_timer_start(m->env, &m->place_timer, AGAIN_US);
    }
}

/* Do the controllers know these? */
static bool is_told(const struct skv_mover *m, const struct ctl_group *group,
                    raft_index index)
{
    return m->picture.number < m->told_number
               ? m->told_index == index
               : ctl_group_same(group, &m->picture.own);
}

void skv_places_look(struct skv_mover *m)
{
    struct rsm_member members[RAFT_PEERS_MAX];
    struct ctl_server servers[RAFT_PEERS_MAX];
    struct ctl_group group;
    raft_index index = 0;
    if (!m->leading || m->closing || m->placing ||
        m->picture.own.servers_count == 0) {
        return;
    }
    (void)raft_conf_newest(rsm_raft(m->server->rsm), &index);
    if (!voters(m, members, servers, &group) || is_told(m, &group, index)) {
        return;
    }
    struct ctl_change change = {
        .kind = CTL_SERVERS, .join = &group, .join_count = 1};
    m->placing = true;
    m->placing_index = index;
    ctl_client_change(m->ctl, &change, PLACE_MS, placed, m);
}

static void again(struct env_timer *timer)
{
    skv_places_look(
        (struct skv_mover *)(void *)((char *)timer -
                                     offsetof(struct skv_mover, place_timer)));
}

/* ---- others ---- */

static void look_up(struct skv_mover *m, uint64_t number);

/* A group that has left is in an older one; its members are told to stay as
 * they are while it has shards to give. */
static void looked_up(void *arg, enum err rc, const struct ctl_config *config)
{
    struct skv_mover *m = arg;
    m->looking_up = false;
    if (rc != ERR_OK) {
        return;
    }
    if (ctl_config_group(config, m->look_up_gid) == NULL &&
        config->number > 1 && ++m->look_up_steps < LOOK_UP_STEPS_MAX) {
        look_up(m, config->number - 1);
        return;
    }
    arena_free(&m->newest_arena);
    ctl_config_copy(&m->newest_arena, config, &m->newest);
}

static void look_up(struct skv_mover *m, uint64_t number)
{
    if (!m->closing) {
        m->looking_up = true;
        ctl_client_query(m->ctl, number, 0, LOOK_UP_MS, looked_up, m);
    }
}

void skv_places_refresh(struct skv_mover *m, ctl_gid gid)
{
    if (!m->looking_up) {
        m->look_up_gid = gid;
        m->look_up_steps = 0;
        look_up(m, CTL_LATEST);
    }
}

const struct ctl_group *skv_places_of(const struct skv_mover *m,
                                      const struct ctl_group *group)
{
    const struct ctl_group *newest = ctl_config_group(&m->newest, group->gid);
    return newest != NULL ? newest : group;
}

void skv_places_init(struct skv_mover *m)
{
    m->place_timer.fire = again;
}

void skv_places_stop(struct skv_mover *m)
{
    env_timer_stop(m->env, &m->place_timer);
}

void skv_places_fini(struct skv_mover *m)
{
    arena_free(&m->newest_arena);
}
