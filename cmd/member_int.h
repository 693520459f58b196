/* The parts of `flotilla member`: member.c the commands, member_step.c the
 * steps that they are made of, member_list.c what is shown. */
#ifndef CMD_MEMBER_INT_H
#define CMD_MEMBER_INT_H

#include "cmd/cluster.h"
#include "rsm/rsm.h"

enum { MEMBER_ASK_MS = 2000, MEMBER_PAUSE_MS = 200 };

struct change {
    struct cluster c;
    struct cluster_access access;
    struct skv_client *client;
    uint32_t gid;
    const char *address; /* --address, or NULL */
    uint64_t replaces;   /* the replica that goes afterwards; 0: none */
    bool json;
    struct arena arena; /* of `members` */
    struct rsm_members members;
};

/* "group 3", or the controllers. */
const char *member_group_name(uint32_t gid, char text[32]);
void member_pause(long ms);
/* What to do about one that cannot lead. */
extern const char member_silent_words[];

/* Asks everybody known until the leader itself has answered: `members`. */
bool member_ask(struct change *ch);
/* NULL: it is not among `members`. */
const struct rsm_member *member_find(const struct change *ch, uint64_t id);
uint8_t member_snap_phase(const struct rsm_member *m);

/* One change, asked for until it is done; false, and says why, if it is refused
 * or nothing moves for a minute. */
bool member_step(struct change *ch, enum rsm_change_kind kind, uint64_t id,
                 const char *address);
/* Before controller `id` goes: until everybody knows the others. */
void member_wait_heard(const struct change *ch, uint64_t id);
/* Until the controllers know who is in the group, or a while. */
void member_wait_told(struct change *ch);

bool member_list(struct change *ch, bool one);

#endif
