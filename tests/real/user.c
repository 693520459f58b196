#include "tests/real/user.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"

static bool is_cut(void *arg, const char *address)
{
    const struct kv_user *u = arg;
    uint32_t port = (uint32_t)strtoul(strrchr(address, ':') + 1, NULL, 10);
    uint32_t number = port - u->port;
    return number < 64 && (u->cut >> number & 1) != 0;
}

static void watch(void *arg, net_method method, struct slice body, bool reply)
{
    const struct kv_user *u = arg;
    struct kv_counts *c = u->counts;
    bool data = method == SKV_METHOD_READ || method == SKV_METHOD_WRITE;
    c->bytes += body.size;
    c->requests += !reply;
    c->replies += reply;
    c->refusals += reply && data && kv_is_refusal(body);
}

void user_init(struct kv_user *u, struct net_loop *loop,
               struct tls_context *tls, uint64_t seed)
{
    CHECK(rpc_new(loop, tls, &u->rpc) == ERR_OK);
    struct faultnet_config config = {.env = net_loop_env(loop),
                                     .inner = rpc_net(u->rpc),
                                     .seed = seed,
                                     .is_cut = is_cut,
                                     .watch = watch,
                                     .arg = u};
    u->faults = faultnet_new(&config);
}

void user_fini(struct kv_user *u)
{
    faultnet_free(u->faults);
    rpc_free(u->rpc);
}

struct net *user_net(struct kv_user *u)
{
    return faultnet_net(u->faults);
}
