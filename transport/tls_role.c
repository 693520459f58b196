/* Roles: what a certificate's subject says about its owner. */
#include "transport/tls_int.h"

#include <openssl/x509.h>
#include <stdio.h>
#include <string.h>

static bool number_parse(const char *text, uint32_t *out)
{
    uint64_t v = 0;
    size_t size = strlen(text);
    if (size == 0 || size > 10 || (size > 1 && text[0] == '0')) {
        return false;
    }
    for (; *text != '\0'; text++) {
        if (*text < '0' || *text > '9') {
            return false;
        }
        v = v * 10 + (uint64_t)(*text - '0');
    }
    if (v > UINT32_MAX) {
        return false;
    }
    *out = (uint32_t)v;
    return true;
}

bool tls_role_parse(const char *unit, enum net_role *role, uint32_t *group)
{
    *group = 0;
    if (strcmp(unit, "client") == 0) {
        *role = NET_ROLE_CLIENT;
        return true;
    }
    if (strcmp(unit, "admin") == 0) {
        *role = NET_ROLE_ADMIN;
        return true;
    }
    *role = NET_ROLE_SERVER;
    return strncmp(unit, "server:", 7) == 0 && number_parse(unit + 7, group);
}

/* The one value of a field of the subject, printable; these go into logs. */
static bool subject_field(const X509 *cert, int nid,
                          char out[TLS_NAME_SIZE_MAX])
{
    const X509_NAME *subject = X509_get_subject_name(cert);
    int at = X509_NAME_get_index_by_NID(subject, nid, -1);
    if (at < 0 || X509_NAME_get_index_by_NID(subject, nid, at) >= 0) {
        return false;
    }
    const ASN1_STRING *value =
        X509_NAME_ENTRY_get_data(X509_NAME_get_entry(subject, at));
    unsigned char *text = NULL;
    int size = ASN1_STRING_to_UTF8(&text, value);
    bool good = size > 0 && size < TLS_NAME_SIZE_MAX;
    for (int i = 0; good && i < size; i++) {
        good = text[i] > ' ' && text[i] < 0x7f;
    }
    if (good) {
        memcpy(out, text, (size_t)size);
        out[size] = '\0';
    }
    OPENSSL_free(text);
    return good;
}

bool tls_subject_read(const X509 *cert, struct net_peer *peer,
                      char name[TLS_NAME_SIZE_MAX], char *problem,
                      size_t problem_size)
{
    char unit[TLS_NAME_SIZE_MAX];
    if (!subject_field(cert, NID_commonName, name)) {
        snprintf(problem, problem_size, "its subject has no usable CN");
        return false;
    }
    if (!subject_field(cert, NID_organizationalUnitName, unit)) {
        snprintf(problem, problem_size, "its subject has no usable OU");
        return false;
    }
    if (!tls_role_parse(unit, &peer->role, &peer->group)) {
        snprintf(problem, problem_size,
                 "its OU \"%s\" is not client, admin or server:N", unit);
        return false;
    }
    peer->name = name;
    return true;
}
