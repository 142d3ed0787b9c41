/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/cuda/vector.cuh
 * Several elements of a view at once, from addresses that are multiples of 16 bytes (8 for
 * kt_load_4 and kt_store_4 of BF16). */
#ifndef KT_BACKENDS_CUDA_VECTOR_CUH
#define KT_BACKENDS_CUDA_VECTOR_CUH

#include "backends/cuda/view.cuh"

static __device__ __forceinline__ uint32_t kt_pack_bf16(float low, float high)
{
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    uint32_t bits;
    memcpy(&bits, &pair, sizeof bits);
    return bits;
}

static __device__ __forceinline__ void kt_unpack_bf16(uint32_t bits, float *to)
{
    to[0] = __uint_as_float(bits << 16);
    to[1] = __uint_as_float(bits & 0xffff0000u);
}

static __device__ __forceinline__ void kt_load_4(const float *x, float *to)
{
    float4 v = *(const float4 *)x;
    to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
}

static __device__ __forceinline__ void kt_load_4(const __nv_bfloat16 *x, float *to)
{
    uint2 v = *(const uint2 *)x;
    kt_unpack_bf16(v.x, to), kt_unpack_bf16(v.y, to + 2);
}

static __device__ __forceinline__ void kt_store_4(float *to, const float *x)
{
    *(float4 *)to = make_float4(x[0], x[1], x[2], x[3]);
}

static __device__ __forceinline__ void kt_store_4(__nv_bfloat16 *to, const float *x)
{
    *(uint2 *)to = make_uint2(kt_pack_bf16(x[0], x[1]), kt_pack_bf16(x[2], x[3]));
}

static __device__ __forceinline__ void kt_load_8(const float *x, float *to)
{
    kt_load_4(x, to), kt_load_4(x + 4, to + 4);
}

static __device__ __forceinline__ void kt_load_8(const __nv_bfloat16 *x, float *to)
{
    uint4 v = *(const uint4 *)x;
    kt_unpack_bf16(v.x, to), kt_unpack_bf16(v.y, to + 2);
    kt_unpack_bf16(v.z, to + 4), kt_unpack_bf16(v.w, to + 6);
}

static __device__ __forceinline__ void kt_store_8(float *to, const float *x)
{
    kt_store_4(to, x), kt_store_4(to + 4, x + 4);
}

static __device__ __forceinline__ void kt_store_8(__nv_bfloat16 *to, const float *x)
{
    *(uint4 *)to = make_uint4(kt_pack_bf16(x[0], x[1]), kt_pack_bf16(x[2], x[3]),
                              kt_pack_bf16(x[4], x[5]), kt_pack_bf16(x[6], x[7]));
}

#endif
