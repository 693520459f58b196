/* Who can be reached where, and who is no member any more.
 *
 * A replica that was away may be spoken to by members whose addresses its log
 * does not have yet, and a removed one is not spoken to at all. So once an
 * election timeout, a replica that knows no leader tells everybody it knows of
 * who and where it is; a leader tells those who do not answer. Whoever hears
 * that remembers the address; and tells a speaker that was removed. */
#include "rsm/rsm_int.h"

#include <inttypes.h>
#include <string.h>

#include "base/log.h"

MSG_CODEC(rsm_hello, RSM_HELLO_FIELDS)
MSG_CODEC(rsm_gone, RSM_GONE_FIELDS)

/* ---- addresses ---- */

const char *rsm_address(const struct rsm *r, raft_id id)
{
    raft_index index = 0;
    const struct raft_conf *conf = raft_conf_newest(r->raft, &index);
    for (uint32_t i = 0; i < conf->place_count; i++) {
        if (conf->places[i].id == id) {
            return conf->places[i].address;
        }
    }
    for (uint32_t i = 0; i < RSM_BOOK_MAX; i++) {
        if (r->book[i].id == id && id != 0) {
            return r->book[i].address;
        }
    }
    for (uint32_t i = 0; i < r->config.peer_count; i++) {
        if (r->config.peers[i].id == id) {
            return r->config.peers[i].address;
        }
    }
    return "";
}

static void book_put(struct rsm *r, raft_id id, struct slice address)
{
    uint32_t at = 0;
    while (at < RSM_BOOK_MAX && r->book[at].id != id) {
        at++;
    }
    if (at == RSM_BOOK_MAX) {
        at = r->book_next++ % RSM_BOOK_MAX; /* the oldest goes */
    }
    r->book[at] = (struct rsm_peer){.id = id};
    memcpy(r->book[at].address, address.data, address.size);
}

/* Everybody whose address is known, each once. */
static uint32_t known_ids(const struct rsm *r, raft_id ids[RSM_KNOWN_MAX])
{
    raft_index index = 0;
    uint32_t count = raft_conf_all(raft_conf_newest(r->raft, &index), ids);
    raft_id more[RSM_BOOK_MAX + RAFT_PEERS_MAX];
    uint32_t more_count = 0;
    for (uint32_t i = 0; i < RSM_BOOK_MAX; i++) {
        more[more_count++] = r->book[i].id;
    }
    for (uint32_t i = 0; i < r->config.peer_count; i++) {
        more[more_count++] = r->config.peers[i].id;
    }
    for (uint32_t i = 0; i < more_count; i++) {
        bool seen = more[i] == 0;
        for (uint32_t k = 0; k < count && !seen; k++) {
            seen = ids[k] == more[i];
        }
        if (!seen) {
            ids[count++] = more[i];
        }
    }
    return count;
}

raft_id rsm_id_at(const struct rsm *r, const char *address)
{
    raft_id ids[RSM_KNOWN_MAX];
    uint32_t count = known_ids(r, ids);
    for (uint32_t i = 0; i < count; i++) {
        if (strcmp(rsm_address(r, ids[i]), address) == 0) {
            return ids[i];
        }
    }
    return 0;
}

/* ---- membership ---- */

/* Was `id` removed, as far as is committed here? Who is yet to be added has an
 * id above all that were ever given. */
static bool was_removed(const struct rsm *r, raft_id id)
{
    struct raft_status s;
    struct raft_conf conf;
    raft_status(r->raft, &s);
    raft_conf_at(r->raft, s.commit > r->durable ? s.commit : r->durable, &conf);
    return !raft_conf_votes(&conf, id) && !raft_conf_learns(&conf, id) &&
           id <= raft_conf_last_id(&conf);
}

static void removed(struct rsm *r)
{
    if (r->removed || rsm_stopped(r)) {
        return;
    }
    r->removed = true;
    log_warn("rsm",
             "this replica was removed from its group and stops: its data "
             "directory can go. A new replica takes a place with `flotilla "
             "member add`. group=%u id=%" PRIu64,
             r->config.group, r->config.id);
    if (r->config.on_removed != NULL) {
        r->config.on_removed(r->config.arg);
    }
}

static void send(struct rsm *r, const char *address, net_method method,
                 struct buf *body)
{
    struct slice part = buf_slice(body);
    net_send(r->config.net, address, method, &part, 1);
    buf_free(body);
}

static void say_hello(struct rsm *r, raft_id to)
{
    const char *address = rsm_address(r, to);
    const char *own = rsm_address(r, r->config.id);
    if (address[0] == '\0' || own[0] == '\0') {
        return;
    }
    struct rsm_hello m = {.from = r->config.id, .address = slice_text(own)};
    struct buf body = {0};
    rsm_hello_encode(&body, &m);
    send(r, address, RSM_METHOD_HELLO, &body);
}

void rsm_hello_heard(struct rsm *r, struct slice from)
{
    struct arena arena = {0};
    struct rsm_hello m;
    if (rsm_hello_decode(from, &arena, &m) == ERR_OK && m.from != 0 &&
        m.from != r->config.id && m.address.size > 0 &&
        m.address.size < NET_ADDRESS_SIZE_MAX &&
        memchr(m.address.data, 0, m.address.size) == NULL) {
        book_put(r, m.from, m.address);
        if (was_removed(r, m.from)) {
            struct rsm_gone gone = {.to = m.from};
            struct buf body = {0};
            rsm_gone_encode(&body, &gone);
            send(r, rsm_address(r, m.from), RSM_METHOD_GONE, &body);
        }
    }
    arena_free(&arena);
}

void rsm_gone_heard(struct rsm *r, struct slice from)
{
    struct arena arena = {0};
    struct rsm_gone m;
    if (rsm_gone_decode(from, &arena, &m) == ERR_OK && m.to == r->config.id) {
        removed(r);
    }
    arena_free(&arena);
}

static void greet(struct rsm *r)
{
    struct raft_status s;
    raft_status(r->raft, &s);
    if (s.role == RAFT_LEADER) {
        for (uint32_t i = 0; i < s.peer_count; i++) {
            if (!s.peers[i].active) {
                say_hello(r, s.peers[i].id);
            }
        }
        return;
    }
    if (s.leader != 0) {
        return;
    }
    raft_id ids[RSM_KNOWN_MAX];
    uint32_t count = known_ids(r, ids);
    for (uint32_t i = 0; i < count; i++) {
        if (ids[i] != r->config.id) {
            say_hello(r, ids[i]);
        }
    }
}

static void on_timer(struct env_timer *t)
{
    struct rsm *r = (struct rsm *)((char *)t - offsetof(struct rsm, hello));
    if (was_removed(r, r->config.id)) {
        removed(r);
    }
    if (rsm_stopped(r) || r->removed) {
        return;
    }
    greet(r);
    env_timer_start(r->env, &r->hello,
                    r->config.election_max_ms * UINT64_C(1000));
}

void rsm_hello_start(struct rsm *r)
{
    r->hello.fire = on_timer;
    env_timer_start(r->env, &r->hello,
                    r->config.election_max_ms * UINT64_C(1000));
}
