/* SPDX-License-Identifier: Apache-2.0 */
#include "placement/residency.h"

uint64_t kt_residency_buffer(const uint64_t *bytes, int32_t num)
{
    uint64_t most = 0;
    for (int32_t u = 0; u < num; u++)
        most = bytes[u] > most ? bytes[u] : most;
    return most;
}

uint64_t kt_residency_fit(const uint64_t *bytes, int32_t num, uint64_t room, bool *resident)
{
    uint64_t all = 0, taken = KT_SUPPLY_BUFFERS * kt_residency_buffer(bytes, num);
    for (int32_t u = 0; u < num; u++)
        all += bytes[u];
    for (int32_t u = 0; u < num; u++) {
        bool stays = bytes[u] && (all <= room || (taken <= room && bytes[u] <= room - taken));
        taken += stays ? bytes[u] : 0;
        if (resident)
            resident[u] = stays;
    }
    return all <= room ? all : taken;
}

int64_t kt_residency_inputs(int64_t num, uint64_t bytes, uint64_t room)
{
    uint64_t fit = bytes ? room / bytes : (uint64_t)num;
    return fit < (uint64_t)num ? (int64_t)fit : num;
}
