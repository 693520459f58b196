/* Controllers may all be replaced while a process runs. So each few seconds one
 * of them is asked who they are; from when one is added its name is heard, so
 * that it takes more than that to lose sight of all. Invariants:
 *
 *  1. A position with tries on their way keeps its address.
 *  2. Nobody is forgotten but by the word of a leader that was reached where
 *     the others reach it, and of no older term than the last one's: a replica
 *     that is behind, or addresses that only they can reach, add to the list.
 *  3. Places of the start that are members no more are asked for the members
 *     alone: somebody else may be there. They answer for their group. */
#include "shardctrler/known.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/check.h"
#include "base/log.h"

enum { ASK_MS = 1000, SILENCE_SAID_S = 30 };
#define SECOND_US UINT64_C(1000000)
#define LOOK_US   (CTL_LOOK_MS * UINT64_C(1000))
/* Between two looks that a doubt begins; and for those of the start. */
#define DOUBT_US  SECOND_US
#define RESORT_US (30 * SECOND_US)

/* ---- the list ---- */

static uint32_t find(const struct ctl_known *k, struct slice address)
{
    for (uint32_t i = 0; i < k->count; i++) {
        if (slice_compare(slice_text(k->places[i].address), address) == 0) {
            return i;
        }
    }
    return k->count;
}

/* CTL_KNOWN_MAX: calls to those who went occupy it; at the next look. */
static uint32_t free_position(const struct ctl_known *k)
{
    for (uint32_t i = 0; i < k->count; i++) {
        const struct ctl_place *p = &k->places[i];
        if (!p->member && !p->given && p->tries == 0) {
            return i;
        }
    }
    return k->count;
}

static void add(struct ctl_known *k, struct slice address)
{
    uint32_t at = find(k, address);
    if (at == k->count) {
        at = free_position(k);
        if (at == CTL_KNOWN_MAX) {
            return;
        }
        k->count += at == k->count;
        k->places[at] = (struct ctl_place){0};
        memcpy(k->places[at].address, address.data, address.size);
        log_info("shardctrler", "a controller is at %s", k->places[at].address);
    }
    k->places[at].member = true;
}

static bool names(const struct rsm_members *m, const char *address)
{
    for (uint32_t i = 0; i < m->members_count; i++) {
        if (slice_compare(m->members[i].address, slice_text(address)) == 0) {
            return true;
        }
    }
    return false;
}

static bool is_address(struct slice s)
{
    return s.size > 0 && s.size < NET_ADDRESS_SIZE_MAX &&
           memchr(s.data, 0, s.size) == NULL &&
           memchr(s.data, ':', s.size) != NULL;
}

static bool makes_sense(const struct rsm_members *m)
{
    bool good = m->group == 0 && m->members_count > 0;
    for (uint32_t i = 0; i < m->members_count; i++) {
        good = good && is_address(m->members[i].address);
    }
    return good;
}

/* True when `at` leads: what it says is all. */
static bool take(struct ctl_known *k, const struct rsm_members *m, uint32_t at)
{
    struct slice leader = {0};
    if (m->term < k->term) {
        return false;
    }
    for (uint32_t i = 0; i < m->members_count; i++) {
        if (m->members[i].id == m->leader) {
            leader = m->members[i].address;
        }
    }
    bool leads = slice_compare(leader, slice_text(k->places[at].address)) == 0;
    for (uint32_t i = 0; leads && i < k->count; i++) {
        k->places[i].member &= names(m, k->places[i].address);
    }
    for (uint32_t i = 0; i < m->members_count; i++) {
        add(k, m->members[i].address);
    }
    k->term = leads ? m->term : k->term;
    uint32_t found = find(k, leader);
    k->leader = found < k->count ? found : k->leader;
    return leads;
}

/* ---- a look ---- */

static void look_end(struct ctl_known *k);

static void look_heard(void *arg, enum err rc, struct slice body);

static void look_ask(struct ctl_known *k, uint32_t at)
{
    struct slice nothing = {0};
    k->asking = at;
    k->asked |= 1u << at;
    k->places[at].tries++;
    k->net_call = net_call(k->net, k->places[at].address, RSM_METHOD_MEMBERS,
                           &nothing, 1, ASK_MS, look_heard, k);
}

/* The one that leads, as far as is known, first. */
static bool look_ask_next(struct ctl_known *k, bool members)
{
    for (uint32_t i = 0; i < k->count; i++) {
        uint32_t at = (k->leader + i) % k->count;
        const struct ctl_place *p = &k->places[at];
        if ((k->asked & 1u << at) == 0 && (members ? p->member : p->given)) {
            look_ask(k, at);
            return true;
        }
    }
    return false;
}

static void look_go_on(struct ctl_known *k)
{
    if (look_ask_next(k, true)) {
        return;
    }
    if (!k->found && k->resort && look_ask_next(k, false)) {
        k->resort_us = k->looked_us;
        return;
    }
    look_end(k);
}

static void look_heard(void *arg, enum err rc, struct slice body)
{
    struct ctl_known *k = arg;
    struct arena arena = {0};
    struct rsm_members m;
    bool leads = false;
    k->net_call = 0;
    k->places[k->asking].tries--;
    if (rc == ERR_OK && rsm_members_decode(body, &arena, &m) == ERR_OK &&
        makes_sense(&m)) {
        k->found = true;
        k->said = false;
        k->heard_us = env_now_us(k->env);
        leads = take(k, &m, k->asking);
    }
    arena_free(&arena);
    leads ? look_end(k) : look_go_on(k);
}

static void look(struct ctl_known *k)
{
    k->doubt = false;
    k->found = false;
    k->asked = 0;
    k->looked_us = env_now_us(k->env);
    k->resort = k->resort_us == 0 || k->looked_us - k->resort_us >= RESORT_US;
    look_go_on(k);
}

/* ---- when nobody answers ---- */

static void say_silence(const struct ctl_known *k, uint64_t silent_us)
{
    struct buf b = {0};
    for (uint32_t i = 0; i < k->count; i++) {
        const struct ctl_place *p = &k->places[i];
        if (p->member || p->given) {
            buf_append(&b, b.size == 0 ? "" : ", ", b.size == 0 ? 0 : 2);
            buf_append(&b, p->address, strlen(p->address));
        }
    }
    log_warn("shardctrler",
             "no controller answers for %" PRIu64
             " s; asked at %.*s. Start them with `flotilla up`; if they were "
             "replaced while this process could not hear of it, stop and start "
             "it, so that it is told where they are",
             silent_us / SECOND_US, (int)b.size, (const char *)b.data);
    buf_free(&b);
}

static void look_end(struct ctl_known *k)
{
    uint64_t silent_us = env_now_us(k->env) - k->heard_us;
    if (!k->found && !k->said && silent_us >= SILENCE_SAID_S * SECOND_US) {
        k->said = true;
        say_silence(k, silent_us);
    }
}

/* ---- from the clerk ---- */

void ctl_known_silent(struct ctl_known *k)
{
    k->doubt = true;
}

void ctl_known_answered(struct ctl_known *k, uint32_t at)
{
    uint64_t now_us = env_now_us(k->env);
    k->heard_us = now_us;
    k->said = false;
    if (k->doubt && k->net_call == 0 && now_us - k->looked_us >= DOUBT_US) {
        k->leader = at;
        look(k);
    }
}

/* Half is random: processes that were started together do not ask together. */
static void timer_start(struct ctl_known *k)
{
    env_timer_start(k->env, &k->timer,
                    LOOK_US / 2 + env_random(k->env) % (LOOK_US / 2));
}

static void timer_fired(struct env_timer *timer)
{
    struct ctl_known *k =
        (struct ctl_known *)(void *)((char *)timer -
                                     offsetof(struct ctl_known, timer));
    timer_start(k);
    if (k->net_call == 0) {
        look(k);
    }
}

void ctl_known_init(struct ctl_known *k, struct env *env, struct net *net,
                    const char (*addresses)[NET_ADDRESS_SIZE_MAX],
                    uint32_t count)
{
    CHECK(count > 0 && count <= RAFT_PEERS_MAX);
    *k = (struct ctl_known){.env = env, .net = net, .count = count};
    for (uint32_t i = 0; i < count; i++) {
        memcpy(k->places[i].address, addresses[i], sizeof addresses[i]);
        k->places[i].member = k->places[i].given = true;
    }
    k->heard_us = k->looked_us = env_now_us(env);
    k->timer.fire = timer_fired;
    timer_start(k);
}

void ctl_known_fini(struct ctl_known *k)
{
    env_timer_stop(k->env, &k->timer);
    if (k->net_call != 0) {
        net_cancel(k->net, k->net_call);
    }
}
