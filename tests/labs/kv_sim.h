/* What only rows on virtual time may ask of kv_sim.c. */
#ifndef TESTS_LABS_KV_SIM_H
#define TESTS_LABS_KV_SIM_H

#include "tests/labs/kv_harness.h"

/* Its place in the simulated world, for a clerk more. */
struct env *kv_sim_env(const struct kv_client *c);
struct net *kv_sim_net(const struct kv_client *c);

#endif
