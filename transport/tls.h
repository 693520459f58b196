/* TLS 1.3 on memory buffers, certificates required on both sides. It sees no
 * socket: ciphertext in, plaintext out, and back. Only transport/tls*.c include
 * <openssl/>.
 *
 * A certificate's role is its subject's OU: "client", "server:GROUP" or
 * "admin"; its CN is the name shown in status and logs. Keys are ECDSA P-256.
 */
#ifndef TRANSPORT_TLS_H
#define TRANSPORT_TLS_H

#include "transport/net.h"

struct tls_context;

/* Reads DIR/ca.crt, DIR/NAME.crt and DIR/NAME.key. On failure `problem` says
 * which file, and what to do. */
MUST_USE enum err tls_context_new(const char *dir, const char *name,
                                  struct tls_context **out, char *problem,
                                  size_t problem_size);
void tls_context_free(struct tls_context *c);
/* Reads the files anew; on failure the old ones stay in use. New connections
 * use the new ones. A context is used by one thread at a time. */
MUST_USE enum err tls_context_reload(struct tls_context *c, char *problem,
                                     size_t problem_size);

struct tls;
/* A client's side takes only a peer with the role of a server, and, unless
 * `host` is NULL, whose certificate is for `host` (an IP or a name). */
struct tls *tls_new(struct tls_context *c, bool is_server, const char *host);
void tls_free(struct tls *t);

/* Ciphertext from the socket; borrowed until a tls_read() gives less than it
 * could: then all of it is used up. */
void tls_feed(struct tls *t, struct slice ciphertext);
/* Goes on with the handshake and puts `*got` decrypted bytes to `to`, `size` at
 * most. ERR_CORRUPT when the peer broke the protocol or its certificate is
 * refused (tls_problem() has the words), ERR_CLOSED at its orderly end: what
 * was got before that is good. */
MUST_USE enum err tls_read(struct tls *t, uint8_t *to, size_t size,
                           size_t *got);
MUST_USE enum err tls_write(struct tls *t, struct slice plain);
/* Takes ciphertext for the socket to the end of `out`; without a copy when
 * `out` is empty. */
void tls_drain(struct tls *t, struct buf *out);
bool tls_has_output(const struct tls *t);
bool tls_is_ready(const struct tls *t); /* the handshake is done */
/* The peer's certificate; valid once ready, as long as `t`. */
const struct net_peer *tls_peer(const struct tls *t);
const char *tls_problem(const struct tls *t);

/* Making certificates (flotilla certs): PEM files in `dir`, keys mode 0600.
 * Files that exist are refused with ERR_EXISTS. */
struct tls_identity {
    const char *name;  /* file name and CN */
    const char *unit;  /* OU: "client", "server:3", "admin" */
    const char *hosts; /* comma-separated IPs and names for the SAN */
    uint32_t days;
};
MUST_USE enum err tls_make_ca(const char *dir, const char *cluster,
                              uint32_t days);
MUST_USE enum err tls_make_certificate(const char *dir,
                                       const struct tls_identity *who);
/* Seconds since 1970 at which DIR/NAME.crt ends. */
MUST_USE enum err tls_certificate_end(const char *dir, const char *name,
                                      uint64_t *end_s);

#endif
