/* flotilla member list: for people, and for programs. */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>

#include "cmd/arrival.h"
#include "cmd/member_int.h"

static const char *const role_names[] = {[RSM_VOTER] = "voter",
                                         [RSM_LEARNER] = "learner",
                                         [RSM_ARRIVING] = "arriving",
                                         [RSM_LEAVING] = "leaving"};

static const char *const phase_words[] = {[RSM_SNAP_NONE] = "none",
                                          [RSM_SNAP_MAKING] = "making",
                                          [RSM_SNAP_SENDING] = "sending",
                                          [RSM_SNAP_INSTALLING] = "installing"};

static const char *role_text(uint8_t role)
{
    return role >= RSM_VOTER && role <= RSM_LEAVING ? role_names[role] : "?";
}

static void list_text(const struct change *ch)
{
    char name[32];
    const struct rsm_members *m = &ch->members;
    printf("%s: term %" PRIu64 ", %" PRIu64 " log entries%s\n",
           member_group_name(ch->gid, name), m->term, m->last_index,
           m->settled != 0 ? "" : ", changing");
    for (uint32_t i = 0; i < m->members_count; i++) {
        const struct rsm_member *one = &m->members[i];
        printf("  %-4" PRIu64 " %-21.*s %-8s %10" PRIu64 " %s\n", one->id,
               (int)one->address.size, (const char *)one->address.data,
               one->id == m->leader ? "leader" : role_text(one->role),
               one->match, one->active != 0 ? "" : "does not answer");
        if (member_snap_phase(one) != RSM_SNAP_NONE) {
            char words[ARRIVAL_WORDS_SIZE];
            printf("       %s\n", arrival_words(one, m->last_index, words));
        }
    }
}

static json_t *list_json(const struct change *ch)
{
    const struct rsm_members *m = &ch->members;
    json_t *members = json_array();
    for (uint32_t i = 0; i < m->members_count; i++) {
        const struct rsm_member *one = &m->members[i];
        json_array_append_new(
            members,
            json_pack(
                "{s:I, s:s%, s:s, s:b, s:I, s:b, s:{s:s, s:I, s:I}}", "id",
                (json_int_t)one->id, "address", (const char *)one->address.data,
                one->address.size, "role", role_text(one->role), "leader",
                one->id == m->leader, "match", (json_int_t)one->match, "active",
                one->active != 0, "snapshot", "phase",
                phase_words[member_snap_phase(one)], "done",
                (json_int_t)one->snap_done, "all", (json_int_t)one->snap_all));
    }
    return json_pack("{s:i, s:I, s:b, s:o}", "group", (int)ch->gid, "term",
                     (json_int_t)m->term, "settled", m->settled != 0, "members",
                     members);
}

static bool list_group(struct change *ch, uint32_t gid, json_t *all)
{
    char name[32];
    ch->gid = gid;
    ch->members = (struct rsm_members){0};
    if (!member_ask(ch)) {
        fprintf(stderr, "flotilla: no leader of %s answers\n",
                member_group_name(gid, name));
        return false;
    }
    if (ch->json) {
        json_array_append_new(all, list_json(ch));
    } else {
        list_text(ch);
    }
    return true;
}

bool member_list(struct change *ch, bool one)
{
    json_t *all = json_array();
    bool ok = true;
    if (one) {
        ok = list_group(ch, ch->gid, all);
    }
    for (uint32_t i = 0; !one && i < ch->c.replica_count; i++) {
        uint32_t gid = ch->c.replicas[i].gid;
        bool seen = false;
        for (uint32_t k = 0; k < i; k++) {
            seen |= ch->c.replicas[k].gid == gid;
        }
        ok &= seen || list_group(ch, gid, all);
    }
    if (ch->json) {
        json_dumpf(all, stdout, JSON_INDENT(2));
        printf("\n");
    }
    json_decref(all);
    return ok;
}
