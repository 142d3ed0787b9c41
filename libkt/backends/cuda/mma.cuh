/* SPDX-License-Identifier: Apache-2.0 */
/** \file backends/cuda/mma.cuh
 * A warp's instructions on matrices of BF16 (PTX ISA: mma.m16n8k16, ldmatrix), and copies into
 * shared memory behind its back (cp.async). All exist since compute capability 8.0.
 *
 * Thread t of the warp holds of a 16 x 8 sum c: (t / 4, t % 4 * 2), the element right of it, and
 * both 8 rows below. Of a left factor of 16 x 16 it holds the same places of the upper left, lower
 * left, upper right and lower right quarter, two elements in a word; of a right factor of 16 x 8
 * the columns t / 4, rows t % 4 * 2 and the next, and both 8 rows below. */
#ifndef KT_BACKENDS_CUDA_MMA_CUH
#define KT_BACKENDS_CUDA_MMA_CUH

#include <cuda_bf16.h>
#include <stdint.h>

/** c += a b */
static __device__ __forceinline__ void kt_mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                              uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/** An address of shared memory as the instructions below take it. */
static __device__ __forceinline__ uint32_t kt_shared(const void *x)
{
    return (uint32_t)__cvta_generic_to_shared(x);
}

/** Four matrices of 8 x 8; threads 8 i to 8 i + 7 give the addresses of the rows of matrix i. */
static __device__ __forceinline__ void kt_ldmatrix(uint32_t (&to)[4], uint32_t row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(row)
                 : "memory");
}

/** The same, each matrix transposed. */
static __device__ __forceinline__ void kt_ldmatrix_transposed(uint32_t (&to)[4], uint32_t row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(row)
                 : "memory");
}

/** Copies 16 bytes from global memory, or writes zeros if `valid` is false. */
static __device__ __forceinline__ void kt_copy_16(uint32_t to, const void *from, bool valid)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(to), "l"(__cvta_generic_to_global(from)), "r"(valid ? 16 : 0)
                 : "memory");
}

/** The same with 4 bytes. */
static __device__ __forceinline__ void kt_copy_4(uint32_t to, const void *from, bool valid)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
                 :
                 : "r"(to), "l"(__cvta_generic_to_global(from)), "r"(valid ? 4 : 0)
                 : "memory");
}

static __device__ __forceinline__ void kt_store_16(uint32_t to, const uint32_t (&x)[4])
{
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};"
                 :
                 : "r"(to), "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3])
                 : "memory");
}

/** All copies of this thread so far are done. */
static __device__ __forceinline__ void kt_copy_wait(void)
{
    asm volatile("cp.async.wait_all;" : : : "memory");
}

/** 2^x, with an error of 2^-22 of it; 0 for minus infinity */
static __device__ __forceinline__ float kt_exp2(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#endif
