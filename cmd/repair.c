/* flotilla member repair: a group of which so many replicas have a damaged log
 * that none can be replaced, because that takes a majority. The work is
 * raft/storage/wal_repair.c's. */
#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

#include "cmd/cluster.h"
#include "cmd/cmd.h"
#include "raft/storage/wal_repair.h"
#include "shardkv/store.h"

struct stopped {
    const struct cluster *c;
    const struct cluster_replica *known[RAFT_PEERS_MAX];
    struct wal_repair_replica replicas[RAFT_PEERS_MAX];
    uint32_t count;
};

/* What its store holds. One that was being replaced is ahead of its log,
 * rightly; what cannot be opened is not known, and the replica's start says
 * more. */
static raft_index durable_of(const struct cluster_replica *r, struct disk *disk,
                             const char *data)
{
    uint64_t index = 0, term = 0;
    struct disk_file *file = NULL;
    struct skv_store *store = NULL;
    if (disk->ops->open(disk, "snap/in", false, &file) == ERR_OK) {
        disk->ops->close(file);
    } else if (r->gid != 0 && skv_store_lmdb_open(data, 0, &store) == ERR_OK) {
        store->ops->durable(store, &index, &term);
        store->ops->close(store);
    }
    return index;
}

/* Each data directory, locked: so none of them runs. */
static bool open_one(struct stopped *s, const struct cluster_replica *r)
{
    char data[PATH_MAX];
    if (s->count == RAFT_PEERS_MAX) {
        fprintf(stderr, "flotilla: a group has at most %u replicas\n",
                RAFT_PEERS_MAX);
        return false;
    }
    struct wal_repair_replica *one = &s->replicas[s->count];
    one->id = r->id;
    s->known[s->count++] = r;
    cluster_path(s->c, "data", r->name, "", data);
    if (access(data, F_OK) != 0) {
        return true; /* it is gone, and counts as such */
    }
    enum err rc = disk_real_open(data, &one->disk);
    if (rc == ERR_OK) {
        one->durable = durable_of(r, one->disk, data);
        return true;
    }
    one->disk = NULL;
    if (rc == ERR_BUSY) {
        fprintf(stderr,
                "flotilla: %s runs: stop the cluster first, with `flotilla "
                "down`\n",
                r->name);
    } else {
        fprintf(stderr, "flotilla: cannot use %s: %s\n", data, err_text(rc));
    }
    return false;
}

static void say_one(const struct stopped *s, uint32_t i)
{
    const struct wal_repair_replica *r = &s->replicas[i];
    const char *name = s->known[i]->name;
    switch (r->state) {
    case WAL_REPAIR_WHOLE: printf("%s: its log is whole\n", name); break;
    case WAL_REPAIR_REPAIRED:
        printf("%s: repaired; its log was damaged in %" PRIu32
               " places, the first in %s\n",
               name, r->holes, r->damage);
        break;
    case WAL_REPAIR_LEFT:
        printf("%s: left as it is (%s): once the others run, `flotilla member "
               "replace %u %" PRIu64 "`\n",
               name, r->damage, s->known[i]->gid, r->id);
        break;
    }
}

static bool repair(struct stopped *s, uint32_t gid)
{
    char problem[256];
    if (s->count == 0) {
        fprintf(stderr, "flotilla: there is no group %u here\n", gid);
        return false;
    }
    enum err rc = wal_repair(s->replicas, s->count, "wal", problem);
    for (uint32_t i = 0; i < s->count && rc == ERR_OK; i++) {
        say_one(s, i);
    }
    for (uint32_t i = 0; i < s->count && rc == ERR_CORRUPT; i++) {
        if (s->replicas[i].damage[0] != 0) {
            fprintf(stderr, "flotilla: %s: %s\n", s->known[i]->name,
                    s->replicas[i].damage);
        }
    }
    if (rc != ERR_OK) {
        fprintf(stderr, "flotilla: cannot repair group %u: %s%s%s\n", gid,
                problem[0] != 0 ? problem : err_text(rc),
                rc == ERR_CORRUPT ? ". Nothing was changed; bring back the "
                                    "bytes (a copy of one of the disks), or "
                                    "restore a backup"
                                  : "",
                rc == ERR_NOSPACE ? ": make room for a copy of the log" : "");
        return false;
    }
    printf("Start the group with `flotilla up`.\n");
    return true;
}

bool repair_group(const struct cluster *c, uint32_t gid)
{
    struct stopped s = {.c = c};
    bool ok = true;
    for (uint32_t i = 0; i < c->replica_count && ok; i++) {
        if (c->replicas[i].gid == gid) {
            ok = open_one(&s, &c->replicas[i]);
        }
    }
    ok = ok && repair(&s, gid);
    for (uint32_t i = 0; i < s.count; i++) {
        if (s.replicas[i].disk != NULL) {
            disk_real_close(s.replicas[i].disk);
        }
    }
    return ok;
}
