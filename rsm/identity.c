/* Whose data this is. A replica that lost its disk must not come back under its
 * old name: it would vote again in terms it has voted in, and acknowledge again
 * what it has forgotten. So the name is a file beside the log, made once, when
 * the replica is made; without it nobody starts.
 *
 *   offset  size  field
 *        0     8  magic    "FLTREPL1"
 *        8     4  group
 *       12     8  id
 *       20     1  joining  1: the group tells it who is in it
 *       21     1  started  1: the log is not empty: it must be there
 *       22     2  reserved, zero
 *       24     4  CRC-32C of all before                                    */
#include <inttypes.h>
#include <string.h>

#include "base/codec.h"
#include "base/log.h"
#include "rsm/rsm_int.h"

#define IDENTITY_FILE "identity"
#define IDENTITY_NEW  "identity.new"

enum { IDENTITY_SIZE = 28, MAGIC_SIZE = 8 };

static const uint8_t magic[] = "FLTREPL1";

static void encode(const struct rsm_identity *id, struct buf *b)
{
    buf_append(b, magic, MAGIC_SIZE);
    enc_u32(b, id->group);
    enc_u64(b, id->id);
    enc_u8(b, id->joining);
    enc_u8(b, id->started);
    enc_u16(b, 0);
    enc_u32(b, crc32c(0, buf_slice(b)));
}

static enum err decode(const uint8_t bytes[IDENTITY_SIZE],
                       struct rsm_identity *out)
{
    struct slice covered = slice_of(bytes, IDENTITY_SIZE - 4);
    struct dec d =
        dec_of(slice_of(bytes + MAGIC_SIZE, IDENTITY_SIZE - MAGIC_SIZE));
    struct rsm_identity id = {.group = dec_u32(&d), .id = dec_u64(&d)};
    uint8_t joining = dec_u8(&d);
    uint8_t started = dec_u8(&d);
    uint16_t reserved = dec_u16(&d);
    uint32_t crc = dec_u32(&d);
    if (memcmp(bytes, magic, MAGIC_SIZE) != 0 || crc != crc32c(0, covered) ||
        joining > 1 || started > 1 || reserved != 0 || d.failed) {
        return ERR_CORRUPT;
    }
    id.joining = joining != 0;
    id.started = started != 0;
    *out = id;
    return ERR_OK;
}

static enum err write_whole(struct disk *disk, const char *path,
                            struct slice bytes)
{
    struct disk_file *file = NULL;
    enum err rc = disk->ops->open(disk, path, true, &file);
    if (rc != ERR_OK) {
        return rc;
    }
    rc = disk->ops->write(file, 0, &bytes, 1);
    if (rc == ERR_OK) {
        rc = disk->ops->sync(file);
    }
    disk->ops->close(file);
    return rc;
}

/* Under another name first: whoever is killed between making a file and writing
 * it leaves an empty one, which nobody may take for a damaged identity. */
static enum err save(struct disk *disk, const struct rsm_identity *id)
{
    struct buf b = {0};
    encode(id, &b);
    enum err rc = write_whole(disk, IDENTITY_NEW, buf_slice(&b));
    if (rc == ERR_OK) {
        rc = disk->ops->rename(disk, IDENTITY_NEW, IDENTITY_FILE);
    }
    if (rc == ERR_OK) {
        rc = disk->ops->sync_dir(disk, "");
    }
    buf_free(&b);
    return rc;
}

static enum err load(struct disk *disk, struct rsm_identity *out)
{
    struct disk_file *file = NULL;
    uint8_t bytes[IDENTITY_SIZE];
    enum err rc = disk->ops->open(disk, IDENTITY_FILE, false, &file);
    if (rc != ERR_OK) {
        return rc;
    }
    rc = disk->ops->read(file, 0, bytes, sizeof bytes);
    disk->ops->close(file);
    return rc == ERR_OK ? decode(bytes, out) : rc;
}

enum err rsm_identity_make(struct disk *disk, uint32_t group, raft_id id,
                           bool joining)
{
    struct rsm_identity old;
    enum err rc = load(disk, &old);
    if (rc == ERR_OK) {
        return old.group == group && old.id == id ? ERR_OK : ERR_EXISTS;
    }
    struct rsm_identity now = {.group = group, .id = id, .joining = joining};
    return rc == ERR_NOTFOUND ? save(disk, &now) : rc;
}

static void say_lost(const struct rsm_config *c, const char *what)
{
    log_error("rsm",
              "%s: replica %" PRIu64 " of group %u has lost its data, and must "
              "not vote again under its name. Give its place to a new one: "
              "`flotilla member replace %u %" PRIu64 "`",
              what, c->id, c->group, c->group, c->id);
}

enum err rsm_identity_check(struct rsm *r)
{
    const struct rsm_config *c = &r->config;
    if (!c->identified) {
        return ERR_OK;
    }
    enum err rc = load(c->disk, &r->identity);
    if (rc == ERR_NOTFOUND) {
        say_lost(c, "the data directory has no identity file");
        return ERR_NOTFOUND;
    }
    if (rc == ERR_CORRUPT) {
        say_lost(c, "the identity file is damaged");
    } else if (rc == ERR_OK &&
               (r->identity.group != c->group || r->identity.id != c->id)) {
        log_error("rsm",
                  "the data directory is that of replica %" PRIu64
                  " of group %u, not of %" PRIu64 " of group %u",
                  r->identity.id, r->identity.group, c->id, c->group);
        return ERR_INVALID;
    }
    return rc;
}

enum err rsm_identity_started(struct rsm *r)
{
    if (!r->config.identified || r->identity.started) {
        return ERR_OK;
    }
    r->identity.started = true;
    enum err rc = save(r->config.disk, &r->identity);
    r->identity.started = rc == ERR_OK;
    return rc;
}

/* The log was opened. `is_new`: it was not there before. One of the first gets
 * its configuration in the log now; of one that joins the log stays empty until
 * the group has told it something (log.c). */
enum err rsm_identity_log(struct rsm *r, bool is_new)
{
    if (!r->config.identified) {
        return ERR_OK;
    }
    if (is_new && r->identity.started) {
        say_lost(&r->config, "the log is missing");
        return ERR_NOTFOUND;
    }
    return is_new && r->identity.joining ? ERR_OK : rsm_identity_started(r);
}
