/* kv_begin() and kv_end() of tests/real/kv.c: servers are started and
 * waited for, then clerks and administrators are made. */
#include "tests/real/kv_int.h"

#include <stdio.h>

#include "base/check.h"
#include "tests/real/home.h"

/* ---- begin: servers ---- */

static void add_server(struct kv *kv, uint32_t group, raft_id id,
                       const char *dir)
{
    struct kv_world *w = kv->world;
    struct process *p = &w->servers[w->server_count];
    struct kv_tuning tuning = kv_tuning(kv);
    CHECK(w->server_count < REAL_NODES_MAX);
    p->noted = world_noted;
    p->arg = kv;
    p->node = (struct real_node){
        .kind = group == 0 ? REAL_CONTROLLER : REAL_GROUP,
        .number = w->server_count++,
        .port = w->port,
        .group = group,
        .id = id,
        .controllers_count = KV_CONTROLLERS,
        .seed = kv->run->seed,
        .shards = kv->options.shards,
        .checkpoint_ms_max = tuning.checkpoint_ms_max,
        .checkpoint_size_max = tuning.checkpoint_size_max,
        .wal_segment_size = tuning.wal_segment_size,
        .log_keep_size = tuning.log_keep_size,
        .log_hold_size = tuning.log_hold_size,
    };
    snprintf(p->node.dir, sizeof p->node.dir, "%s/n%u", dir, p->node.number);
    snprintf(p->node.certs, sizeof p->node.certs, "%s", home_certs());
    snprintf(p->node.name, sizeof p->node.name, "g%u", group);
    process_init(p);
}

static void add_set(struct kv *kv, uint32_t group, const char *dir)
{
    struct kv_world *w = kv->world;
    struct set *s = &w->sets[w->set_count++];
    CHECK(w->set_count <= WORLD_SETS_MAX);
    s->first = w->server_count;
    s->count = kv_group_size(kv, group);
    for (uint32_t i = 0; i < s->count; i++) {
        struct process *p = &w->servers[s->first + i];
        add_server(kv, group, i + 1, dir);
        p->node.first = s->first;
        p->node.count = s->count;
    }
}

static void start_all(struct kv *kv)
{
    struct kv_world *w = kv->world;
    for (uint32_t i = 0; i < w->server_count; i++) {
        w->servers[i].node.net = world_net(kv, i);
        process_start(&w->servers[i]);
    }
    for (uint32_t i = 0; i < w->server_count; i++) {
        w->ready[i] = process_await(&w->servers[i]);
    }
}

/* ---- begin: users ---- */

static struct tls_context *tls_of(const char *name)
{
    struct tls_context *tls;
    char problem[512];
    CHECK(tls_context_new(home_certs(), name, &tls, problem, sizeof problem) ==
          ERR_OK);
    return tls;
}

/* Of set 0, or the last. */
static void controllers_of(const struct kv_world *w, uint32_t set,
                           char addresses[][NET_ADDRESS_SIZE_MAX])
{
    for (uint32_t i = 0; i < KV_CONTROLLERS; i++) {
        world_address(w, w->sets[set].first + i, addresses[i]);
    }
}

static void clerk_make(struct kv_client *c, uint32_t set)
{
    char addresses[KV_CONTROLLERS][NET_ADDRESS_SIZE_MAX];
    controllers_of(c->kv->world, set, addresses);
    c->clerk = skv_clerk_new(c->kv->world->env, user_net(c->user), addresses,
                             KV_CONTROLLERS);
}

static void admin_make(struct kv_admin *a, uint32_t set)
{
    char addresses[KV_CONTROLLERS][NET_ADDRESS_SIZE_MAX];
    controllers_of(a->kv->world, set, addresses);
    a->ctl = ctl_client_new(a->kv->world->env, user_net(a->user), addresses,
                            KV_CONTROLLERS);
}

static struct kv_user *add_user(struct kv *kv, struct tls_context *tls)
{
    struct kv_world *w = kv->world;
    struct kv_user *u = &w->users[w->user_count++];
    u->counts = &w->counts;
    u->port = w->port;
    user_init(u, w->loop, tls, rng_next(&w->rng));
    faultnet_set(u->faults, &w->plan);
    return u;
}

static void build_users(struct kv *kv)
{
    struct kv_world *w = kv->world;
    w->users =
        mem_array(kv->options.admins + kv->options.clients, sizeof *w->users);
    for (uint32_t i = 0; i < kv->options.admins; i++) {
        kv->admins[i].user = add_user(kv, w->admin_tls);
        admin_make(&kv->admins[i], 0);
    }
    for (uint32_t i = 0; i < kv->options.clients; i++) {
        kv->clients[i].user = add_user(kv, w->client_tls);
        clerk_make(&kv->clients[i], 0);
    }
}

void kv_client_deceive(struct kv_client *c)
{
    if (!kv_failed(c->kv)) {
        skv_clerk_free(c->clerk);
        clerk_make(c, c->kv->world->set_count - 1);
    }
}

void kv_admin_redirect(struct kv_admin *a)
{
    if (!kv_failed(a->kv)) {
        ctl_client_free(a->ctl);
        admin_make(a, a->kv->world->set_count - 1);
    }
}

/* ---- begin and end ---- */

static void world_init(struct kv *kv, const char *dir)
{
    struct kv_world *w = kv->world;
    char path[PATH_MAX + 8];
    w->rng.state = kv->run->seed;
    kv->rng = &w->rng;
    CHECK(net_loop_new(&w->loop) == ERR_OK);
    w->env = net_loop_env(w->loop);
    w->client_tls = tls_of("client");
    w->admin_tls = tls_of("admin");
    w->plan.unreliable = kv->options.unreliable;
    w->plan.silent = kv->options.silence && kv->run->seed % 4 == 0;
    w->port = home_ports(REAL_NODES_MAX);
    later_init(&w->look, kv, world_look, kv);
    later_init(&w->alarm, kv, world_wake, kv);
    snprintf(path, sizeof path, "%s/row.log", dir);
    w->notes = fopen(path, "w");
    CHECK(w->notes != NULL);
}

struct kv *kv_begin(struct lab_run *run, const struct kv_options *options)
{
    struct kv *kv = kv_new(run, options);
    const char *dir = home_row_make(run->name);
    kv->world = mem_alloc(sizeof *kv->world);
    kv->begun_us = process_now_us();
    world_init(kv, dir);
    for (uint32_t group = 0; group <= options->groups; group++) {
        add_set(kv, group, dir);
    }
    if (options->other_controllers) {
        add_set(kv, 0, dir);
    }
    start_all(kv);
    world_problems(kv);
    build_users(kv);
    env_timer_start(kv->world->env, &kv->world->look.timer, WORLD_LOOK_US);
    kv->begun_us = process_now_us();
    return kv;
}

static void end_users(struct kv *kv)
{
    for (uint32_t i = 0; i < kv->options.admins; i++) {
        ctl_client_free(kv->admins[i].ctl);
    }
    for (uint32_t i = 0; i < kv->options.clients; i++) {
        skv_clerk_free(kv->clients[i].clerk);
    }
    for (uint32_t i = 0; i < kv->world->user_count; i++) {
        user_fini(&kv->world->users[i]);
    }
    mem_free(kv->world->users);
}

static void world_fini(struct kv_world *w)
{
    env_timer_stop(w->env, &w->look.timer);
    while (w->laters != NULL) {
        later_free(w->laters);
    }
    for (uint32_t i = 0; i < w->server_count; i++) {
        process_fini(&w->servers[i]);
    }
    for (uint32_t i = 0; i < w->set_count; i++) {
        mem_free(w->sets[i].leaders);
    }
    tls_context_free(w->client_tls);
    tls_context_free(w->admin_tls);
    net_loop_free(w->loop);
    fclose(w->notes);
    mem_free(w);
}

void kv_end(struct kv *kv)
{
    struct lab_run *run = kv->run;
    kv_report(kv);
    kv->ending = true;
    end_users(kv);
    world_fini(kv->world);
    kv_free(kv);
    if (!run->failed || home_interrupted()) {
        home_row_remove();
    }
}
