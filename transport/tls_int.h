/* What the files transport/tls*.c share. */
#ifndef TRANSPORT_TLS_INT_H
#define TRANSPORT_TLS_INT_H

#include <openssl/ssl.h>

#include "transport/tls.h"

enum { TLS_NAME_SIZE_MAX = 65 }; /* X.520's bound for a CN, and a zero */

struct tls_context {
    char *dir;
    char *name;
    SSL_CTX *ssl; /* counted: streams keep the one they began with */
};

struct tls {
    SSL *ssl;
    struct slice in; /* fed, not yet read; borrowed */
    struct buf out;  /* for the socket */
    bool is_server;
    bool ready;
    struct net_peer peer;
    char name[TLS_NAME_SIZE_MAX];
    char problem[192];
};

/* Reads an OU strictly: "client", "admin" or "server:N". */
bool tls_role_parse(const char *unit, enum net_role *role, uint32_t *group);

/* The role and name in a certificate's subject. False, with words in
 * `problem`, when there is not exactly one good OU and CN. */
bool tls_subject_read(const X509 *cert, struct net_peer *peer,
                      char name[TLS_NAME_SIZE_MAX], char *problem,
                      size_t problem_size);

/* Called by OpenSSL for each certificate of the peer's chain. */
int tls_verify(int is_good, X509_STORE_CTX *store);

#endif
